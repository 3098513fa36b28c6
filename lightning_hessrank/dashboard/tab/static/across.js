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
  const guides = (points, ranges, theme) => {
    const [low, high] = ranges.x.map((x) => 10 ** x);
    const logs = points.filter((p) => p.x > 0 && p.y > 0).map((p) => Math.log(p.y) - 0.5 * Math.log(p.x));
    const middle = Math.exp(logs.reduce((a, b) => a + b, 0) / logs.length);
    const line = (name, y, dash) => ({
      x: [low, high], y: [low, high].map(y), mode: "lines", name, meta: name,
      line: { color: theme.faint, width: 1.3, dash }, hovertemplate: `${name}<extra></extra>`,
    });
    return [line("all p: full rank", (x) => x, "dash"),
      ...(logs.length > 1 ? [line("∝ √p", (x) => middle * Math.sqrt(x), "dot")] : [])];
  };

  /** The name of a guide, where it leaves the picture at the right or at the top. */
  const nameOf = (line, ranges, theme) => {
    const [x0, y0, slope] = [Math.log10(line.x[0]), Math.log10(line.y[0]), Math.log10(line.y[1] / line.y[0]) / Math.log10(line.x[1] / line.x[0])];
    const x = Math.min(ranges.x[1], x0 + (ranges.y[1] - y0) / slope);
    return {
      x: x - 0.02, y: y0 + slope * (x - x0), text: line.name, xanchor: "right", yanchor: x < ranges.x[1] ? "top" : "bottom",
      showarrow: false, font: { size: 11, color: theme.faint },
    };
  };

  const acrossChart = (runs, state, theme, height) => {
    const points = runs.map((run) => ({
      run, x: against(run, state.against), y: hr.scaled(hr.count(hr.last(run), state.tolerance), hr.last(run), state.unit),
    })).filter((p) => p.x !== null && p.y !== null);
    const title = (state.against in OWN ? OWN[state.against] : state.against);
    const ratio = state.unit === "count" ? "" : state.unit === "bound" ? " / bound" : " / p";
    const log = ["num_parameters", "bound"].includes(state.against) && state.unit === "count" && points.every((p) => p.x > 0 && p.y > 0);
    const seen = (values) => {
      const logs = values.map(Math.log10);
      return [Math.min(...logs) - 0.35, Math.max(...logs) + 0.35];
    };
    const ranges = log && points.length ? { x: seen(points.map((p) => p.x)), y: seen(points.map((p) => p.y)) } : null;
    const traces = ranges && state.against === "num_parameters" ? guides(points, ranges, theme) : [];
    const names = traces.map((t) => nameOf(t, ranges, theme));
    traces.push({
      x: points.map((p) => p.x), y: points.map((p) => p.y), mode: points.length <= 12 ? "markers+text" : "markers",
      text: points.map((p) => escape(p.run.label)), textposition: "middle right", meta: "runs", cliponaxis: false,
      textfont: { size: 11, color: theme.faint },
      marker: { size: 11, color: points.map((p) => hr.colour(p.run, theme)), symbol: points.map((p) => hr.symbol(p.run)) },
      hovertemplate: `<b>%{text}</b><br>${escape(title)}: %{x:.5~g}<br>rank${ratio}: %{y:.5~g}<extra></extra>`,
    });
    const axis = log ? { type: "log", dtick: "D2", tickformat: "~s" } : { type: "linear", tickformat: "~g" };
    return {
      traces,
      table: { columns: ["run", state.against, `rank${ratio}`], rows: points.map((p) => [p.run.run, p.x, p.y]) },
      layout: hr.layout(theme, {
        height, annotations: names, margin: { l: 62, r: 24, t: 14, b: 44 },
        xaxis: { title: { text: escape(title) }, ...axis, ...(ranges ? { range: ranges.x } : {}) },
        yaxis: { title: { text: `final rank${ratio}` }, ...axis, ...(ranges ? { range: ranges.y } : {}), ...(log ? {} : { rangemode: "tozero", tickformat: ratio ? ".0%" : "~s" }) },
      }),
    };
  };

  Object.assign(hr, { acrossChart, choices, against });
})((window.hessrank = window.hessrank || {}));
