// What a reader can turn: tolerance, axis, unit, switches; and the panel that a chart sits in.
(function (hr) {
  "use strict";
  const { el } = hr;
  let groups = 0;

  /** A row of choices of which one holds. */
  const choice = (title, options, value, change) => {
    const name = `choice${(groups += 1)}`;
    return el("fieldset", { class: "choice" }, el("legend", null, title),
      options.map(([key, text]) => el("label", null,
        el("input", { type: "radio", name, value: key, checked: key === value, onchange: () => change(key) }),
        el("span", null, text))));
  };

  const check = (text, value, change, title) =>
    el("label", { class: "check", title }, el("input", { type: "checkbox", checked: value, onchange: (e) => change(e.target.checked) }), text);

  const select = (title, options, value, change) => {
    const node = el("select", { onchange: (e) => change(e.target.value) },
      options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
    return el("label", { class: "select" }, title, node);
  };

  /** A slider over named stops that says where it stands. */
  const slider = (title, stops, value, describe, change) => {
    const at = Math.max(0, stops.indexOf(value));
    const output = el("output", null, describe(stops[at]));
    const input = el("input", {
      type: "range", min: 0, max: Math.max(0, stops.length - 1), step: 1, value: at, disabled: stops.length < 2,
      oninput: (e) => { output.textContent = describe(stops[e.target.value]); change(stops[e.target.value]); },
    });
    return el("label", { class: "slider" }, title, input, output);
  };

  const download = (name, type, text) => {
    const url = URL.createObjectURL(new Blob([text], { type }));
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  /** A frame around a chart, with its title, its picture and its numbers to take away. */
  const panel = (id, title) => {
    const plot = el("div", { class: "plot", id: `plot-${id}` });
    const message = el("p", { class: "message", hidden: true });
    const subtitle = el("span", { class: "faint" });
    const buttons = el("span", { class: "buttons" },
      el("button", { title: "Save as a picture", onclick: () => window.Plotly.downloadImage(plot, { format: "png", scale: 2, filename: `hessian-${id}` }) }, "PNG"),
      el("button", { title: "Save the numbers", onclick: () => download(`hessian-${id}.csv`, "text/csv", hr.csv(plot.hrTable)) }, "CSV"));
    const node = el("section", { class: "panel" }, el("header", null, el("h3", null, title), subtitle, buttons), plot, message);
    const config = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
    return {
      node, plot,
      /** Draw, or say why there is nothing to draw. */
      show(chart, note = "") {
        const empty = typeof chart === "string";
        message.hidden = !empty;
        plot.hidden = empty;
        buttons.hidden = empty;
        subtitle.textContent = note;
        if (empty) {
          message.textContent = chart;
          plot.hrTable = { columns: [], rows: [] };
          return null;
        }
        plot.hrTable = chart.table;
        return window.Plotly.react(plot, chart.traces, chart.layout, config);
      },
    };
  };

  Object.assign(hr, { choice, check, select, slider, panel });
})((window.hessrank = window.hessrank || {}));
