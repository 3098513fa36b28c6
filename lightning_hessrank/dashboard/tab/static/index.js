// The tab inside TensorBoard: loads the scripts, follows its theme and its reload button.

const script = (source) => new Promise((resolve, reject) => {
  const node = document.createElement("script");
  Object.assign(node, { src: source, async: false, onload: resolve, onerror: () => reject(new Error(`${source} could not be loaded`)) });
  document.head.append(node);
});

const json = async (address) => {
  const answer = await fetch(address);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
};

const style = () => {
  const node = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "./style.css" });
  document.head.append(node);
};

/** TensorBoard's page has a class where it is dark; this page is of the same origin. */
const followTheme = (view) => {
  const outside = window.parent.document.body;
  const follow = () => {
    view.setDark(outside.classList.contains("dark-mode"));
    document.documentElement.dataset.theme = view.root.dataset.theme;
  };
  follow();
  new MutationObserver(follow).observe(outside, { attributeFilter: ["class"] });
};

/** TensorBoard tells its plugins, over a channel that they open, when it has read its files anew. */
const onReload = (reload) => {
  const channel = new MessageChannel();
  channel.port1.onmessage = ({ data }) => {
    const message = typeof data === "string" ? JSON.parse(data) : data;
    if (message.isReply) return;
    const reply = { type: message.type, id: message.id, payload: null, error: null, isReply: true };
    channel.port1.postMessage(typeof data === "string" ? JSON.stringify(reply) : reply);
    if (message.type === "experimental.DataReloaded") reload();
  };
  window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
};

export const render = async () => {
  style();
  document.title = "Hessian";
  const root = document.createElement("main");
  root.id = "hessian";
  document.body.append(root);
  const library = script("./plotly.min.js"); // the largest, so it is asked for first
  library.catch(() => null);
  const first = json("./runs");
  first.catch(() => null); // both are said below, once there is a page to say it on
  const names = await json("./scripts");
  await Promise.all([library, ...names.map((name) => script(`./${name}`))]);
  const address = (run) => `./details?${new URLSearchParams({ run: run.run, name: run.name })}`;
  const view = new window.hessrank.View(root, (run) => json(address(run)));
  window.hessrank.view = view;
  followTheme(view);
  const show = (promise) => promise.then((payload) => view.update(payload), (error) => view.fail(String(error.message || error)));
  await show(first);
  onReload(() => show(json("./runs")));
};
