// Tables and other pieces of the page. Every text from a run goes in as text, never as markup.
(function (hr) {
  "use strict";
  const { known, number, percent, seconds } = hr;

  /** An element: el("td", {class: "x", onclick: f}, "text", child). */
  const el = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {}))
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
    return node;
  };

  const dot = (run, theme) => {
    const node = el("span", { class: run.exact ? "dot" : "dot open" });
    node.style.setProperty("--colour", hr.colour(run, theme));
    return node;
  };

  /** The answer to the three questions, for one run: up or down, against the bound, exact or not. */
  const verdict = (run, state, theme, toggle) => {
    const change = hr.change(run, state.tolerance);
    const of = hr.last(run).num_parameters;
    const ranks = change.from === null ? change.text
      : ["•", "="].includes(change.arrow) ? `${number(change.to)}` : `${number(change.from)} → ${number(change.to)}`;
    const shown = !state.hidden.has(run.id);
    return el("li", { class: shown ? "verdict" : "verdict off", title: run.run },
      el("label", null,
        el("input", { type: "checkbox", checked: shown, onchange: toggle }), dot(run, theme),
        el("span", { class: "name" }, run.label)),
      el("div", { class: "ranks" }, el("b", null, ranks), change.word ? ` ${change.arrow} ${change.word}` : "",
        el("span", { class: "faint" }, known(of) ? ` of ${number(of)} parameters` : "")),
      el("div", null, hr.comparison(run, state.tolerance)),
      el("div", { class: run.exact ? "" : "estimate" }, hr.exactness(run, state.tolerance)));
  };

  const skipped = (record) => (known(record.skipped) ? number(record.skipped) : "–");
  const products = (record) => {
    if (record.products === "differences") return "finite differences";
    return typeof record.products === "string" ? record.products : "–";
  };

  const TRUST = [
    ["run", (run) => run.label],
    ["how", (run) => hr.exactness(run)],
    ["gap at the cut", (run, r) => hr.gapWords(r)],
    ["tolerance", (run, r) => hr.toleranceWords(r)],
    ["data", (run, r) => (known(r.num_samples) ? `${number(r.num_samples)} samples` : "–")],
    ["mode", (run, r) => r.module_mode || "–"],
    ["stands at", (run, r) => r.limited_by || "–"],
    ["arithmetic", (run, r) => r.dtype || "–"],
    ["derivatives", (run, r) => products(r)],
    ["one takes", (run, r) => seconds(r.seconds)],
    ["time share", (run, r) => percent(r.overhead)],
    ["skipped", (run, r) => skipped(r)],
  ];

  /** Can I trust it: one row a run; columns of which no run knows anything are left out. */
  const trustTable = (runs, theme) => {
    const known_ = TRUST.filter(([, text], i) => i === 0 || runs.some((run) => text(run, hr.last(run)) !== "–"));
    const rows = runs.map((run) => known_.map(([, text]) => text(run, hr.last(run))));
    const body = rows.map((row, i) => el("tr", null, row.map((text, j) =>
      el("td", { class: j === 0 ? "name" : /^(no clear|estimate)/.test(text) ? "careful" : null }, j ? null : dot(runs[i], theme), text))));
    const node = el("table", null, el("thead", null, el("tr", null, known_.map(([name]) => el("th", null, name)))),
      el("tbody", null, body));
    node.hrTable = { columns: known_.map(([name]) => name), rows };
    return node;
  };

  /** What was said in training, for each run. */
  const warnings = (runs, broken) => {
    const said = runs.flatMap((run) => run.records.flatMap((r) =>
      (Array.isArray(r.warnings) ? r.warnings : []).map((text) => [`${run.label}, step ${number(r.step)}`, String(text)])));
    const lines = [...said, ...broken.map((b) => [b.run, `could not be read: ${b.reason}`])];
    if (!lines.length) return null;
    return el("details", { class: "warnings", open: lines.length <= 3 },
      el("summary", null, `${lines.length} ${lines.length === 1 ? "warning" : "warnings"}`),
      el("ul", null, lines.map(([run, text]) => el("li", null, el("b", null, `${run}: `), text))));
  };

  const SUMMARY = [
    ["run", (run) => run.label],
    ["parameters", (run) => hr.last(run).num_parameters],
    ["first rank", (run, state) => hr.count(hr.first(run), state.tolerance)],
    ["last rank", (run, state) => hr.count(hr.last(run), state.tolerance)],
    ["exact", (run) => (run.exact ? "exact" : "estimate")],
    ["bound", (run) => hr.last(run).bound],
    ["worth", (run) => hr.worth(hr.last(run))],
    ["of bound", (run, state) => hr.scaled(hr.count(hr.last(run), state.tolerance), hr.last(run), "bound"), percent],
    ["of parameters", (run, state) => hr.scaled(hr.count(hr.last(run), state.tolerance), hr.last(run), "parameters"), percent],
    ["loss", (run) => hr.last(run).loss, (x) => (known(x) ? x.toPrecision(4) : "–")],
    ["measurements", (run) => run.records.length],
    ["last step", (run) => hr.last(run).step],
  ];

  /** All runs in one table that sorts by a click on a heading. */
  const summaryTable = (runs, state, theme, resort) => {
    const [by, downwards] = state.sort;
    const key = (run) => SUMMARY[by][1](run, state);
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x === "number" && typeof y === "number") return x - y;
      if (x === null || x === undefined || y === null || y === undefined) return Number(known(x)) - Number(known(y));
      return String(x).localeCompare(String(y), "en", { numeric: true });
    };
    const sorted = [...runs].sort((a, b) => (downwards ? -1 : 1) * compare(a, b));
    const text = (value, show) => (show ? show(value) : typeof value === "number" ? number(value) : value || "–");
    const heads = SUMMARY.map(([name], i) => el("th", { class: i && ![4, 6].includes(i) ? "number" : null },
      el("button", { onclick: () => resort(i) }, name, i === by ? (downwards ? " ↓" : " ↑") : "")));
    const node = el("table", null, el("thead", null, el("tr", null, heads)),
      el("tbody", null, sorted.map((run) => el("tr", null, SUMMARY.map(([, value, show], i) =>
        el("td", { class: i === 0 ? "name" : [4, 6].includes(i) ? null : "number" },
          i ? null : dot(run, theme), text(value(run, state), show)))))));
    node.hrTable = { columns: SUMMARY.map(([name]) => name), rows: sorted.map((run) => SUMMARY.map(([, value]) => value(run, state))) };
    return node;
  };

  /** The bound, layer by layer, and why it holds or not. */
  const boundTable = (bound) => {
    const sums = [["outer-product", bound.outer], ["functional", bound.functional], ["total", bound.total], ["parameters", bound.num_parameters]];
    const row = (cells, tag = "td") => el("tr", null, cells.map((c, i) => el(tag, { class: i ? "number" : "name" }, typeof c === "number" ? number(c) : c)));
    const layers = (Array.isArray(bound.layers) ? bound.layers : []).filter((x) => x && x.name !== undefined);
    return el("div", { class: "bound" },
      el("p", null, el("b", null, `${number(bound.total)} (${bound.kind}, ${bound.is_theorem ? "theorem" : "reference line"}). `), String(bound.reason || "")),
      el("div", { class: "scroll" }, el("table", null,
        el("thead", null, row(["layer", "parameters", bound.functional === null ? "its block of H" : "functional"], "th")),
        el("tbody", null, layers.map((x) => row([String(x.name), x.num_parameters, x.functional])),
          sums.filter(([, v]) => known(v)).map(([name, v]) => row([name, "", v]))))));
  };

  Object.assign(hr, { el, dot, verdict, trustTable, warnings, summaryTable, boundTable });
})((window.hessrank = window.hessrank || {}));
