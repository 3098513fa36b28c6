// Across runs: the final rank against size, loss, or anything else that was logged.
(function (hr) {
  "use strict";
  const { known, number, escape } = hr;

  const OWN = {
    num_parameters: "number of parameters p", bound: "bound", loss: "loss on the reference data",
    num_samples: "samples of the reference data",
  };

  const against = (run, key) => {
    const value = key in OWN ? hr.last(run)[key] : (run.metrics || {})[key];
    return known(value) ? value : null;
  };

  /** What at least one run has: the measured first, then the user's own scalars. */
  const choices = (runs) => {
    const own = Object.keys(OWN).filter((key) => runs.some((run) => against(run, key) !== null));
    const logged = new Set(runs.flatMap((run) => Object.keys(run.metrics || {})));
    return [...own.map((key) => [key, OWN[key]]), ...[...logged].sort().map((key) => [key, key])];
  };

  /** c·√p through the geometric middle of the runs: what the theory expects of channels. */
  const guides = (points, theme) => {
    const sizes = points.map((p) => p.x).filter((x) => x > 0);
    const [low, high] = [Math.min(...sizes) / 1.6, Math.max(...sizes) * 1.6];
    const logs = points.filter((p) => p.x > 0 && p.y > 0).map((p) => Math.log(p.y) - 0.5 * Math.log(p.x));
    const middle = Math.exp(logs.reduce((a, b) => a + b, 0) / logs.length);
    const line = (name, y, dash) => ({
      x: [low, high], y: [low, high].map(y), mode: "lines", name, meta: name,
      line: { color: theme.faint, width: 1.3, dash }, hovertemplate: `${name}<extra></extra>`,
    });
    return [line("all p: full rank", (x) => x, "dash"),
      ...(logs.length > 1 ? [line("∝ √p", (x) => middle * Math.sqrt(x), "dot")] : [])];
  };

  const acrossChart = (runs, state, theme, height) => {
    const points = runs.map((run) => ({
      run, x: against(run, state.against), y: hr.scaled(hr.count(hr.last(run), state.tolerance), hr.last(run), state.unit),
    })).filter((p) => p.x !== null && p.y !== null);
    const title = (state.against in OWN ? OWN[state.against] : state.against);
    const ratio = state.unit === "count" ? "" : state.unit === "bound" ? " / bound" : " / p";
    const log = ["num_parameters", "bound"].includes(state.against) && state.unit === "count" && points.every((p) => p.x > 0 && p.y > 0);
    const traces = log && state.against === "num_parameters" && points.length ? guides(points, theme) : [];
    const names = traces.map((t) => ({
      x: Math.log10(t.x[1]), y: Math.log10(t.y[1]), text: t.name, xanchor: "right", yanchor: "bottom", showarrow: false,
      font: { size: 11, color: theme.faint },
    }));
    traces.push({
      x: points.map((p) => p.x), y: points.map((p) => p.y), mode: points.length <= 12 ? "markers+text" : "markers",
      text: points.map((p) => escape(p.run.label)), textposition: "bottom center", meta: "runs", cliponaxis: false,
      textfont: { size: 11, color: theme.faint },
      marker: { size: 11, color: points.map((p) => hr.colour(p.run, theme)), symbol: points.map((p) => hr.symbol(p.run)) },
      hovertemplate: `<b>%{text}</b><br>${escape(title)}: %{x:.5~g}<br>rank${ratio}: %{y:.5~g}<extra></extra>`,
    });
    const axis = { type: log ? "log" : "linear", ...(log ? { exponentformat: "SI" } : { tickformat: "~g" }) };
    return {
      traces,
      table: { columns: ["run", state.against, `rank${ratio}`], rows: points.map((p) => [p.run.run, p.x, p.y]) },
      layout: hr.layout(theme, {
        height, annotations: names, margin: { l: 62, r: 24, t: 14, b: 44 },
        xaxis: { title: { text: escape(title) }, ...axis },
        yaxis: { title: { text: `final rank${ratio}` }, ...axis, ...(log ? {} : { rangemode: "tozero", tickformat: ratio ? ".0%" : "~s" }) },
      }),
    };
  };

  Object.assign(hr, { acrossChart, choices, against });
})((window.hessrank = window.hessrank || {}));
