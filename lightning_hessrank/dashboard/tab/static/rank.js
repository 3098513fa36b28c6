// What is happening: the rank of all runs beside their bounds.
(function (hr) {
  "use strict";
  const { known, number, percent, escape } = hr;

  const UNITS = {
    count: { title: "rank (eigenvalues beyond the tolerance)", text: number },
    bound: { title: "rank / bound", text: percent },
    parameters: { title: "rank / number of parameters", text: percent },
  };
  const SMOOTH = { // effective ranks that need no tolerance, where they were measured
    effective_dimension: "effective dimension", entropy_rank: "entropy rank",
    participation_ratio: "participation ratio", stable_rank: "stable rank",
  };
  const MOST_DOTS = 40, MOST_LABELS = 8;

  const measure = (record, name) => {
    const value = (record.measures || {})[name];
    return known(value) ? value : Array.isArray(value) && known(value[0]) ? value[0] : null;
  };

  const hover = (run, record, state) => {
    const value = hr.count(record, state.tolerance);
    const range = hr.interval(record, state.tolerance);
    const lines = [
      `<b>${escape(run.label)}</b>, step ${number(record.step)}`,
      `rank <b>${number(value)}</b> of ${number(record.num_parameters)} parameters`,
    ];
    if (range) lines.push(`between ${number(range[0])} and ${number(range[1])} (95 %)`);
    if (known(record.bound))
      lines.push(`${percent(value / record.bound)} of the bound ${number(record.bound)} ${hr.worth(record)}`);
    lines.push(hr.exactness(run, state.tolerance));
    if (state.tolerance === "own") {
      lines.push(`tolerance ${hr.toleranceWords(record)}`);
      lines.push(`gap: ${hr.gapWords(record)}`);
    }
    return lines.join("<br>");
  };

  const runTraces = (run, state, theme) => {
    const colour = hr.colour(run, theme);
    const x = run.records.map((r) => hr.axisValue(r, state.x));
    const y = run.records.map((r) => hr.scaled(hr.count(r, state.tolerance), r, state.unit));
    const dots = run.records.length <= MOST_DOTS;
    const traces = [];
    const band = run.records
      .map((r, i) => [x[i], hr.interval(r, state.tolerance), r])
      .filter(([, range]) => range);
    if (band.length) {
      const ends = (k) => band.map(([, range, r]) => hr.scaled(range[k], r, state.unit));
      traces.push({
        x: [...band.map((b) => b[0]), ...band.map((b) => b[0]).reverse()],
        y: [...ends(1), ...ends(0).reverse()],
        fill: "toself", fillcolor: hr.transparent(colour, 0.18), line: { width: 0 },
        mode: "lines", hoverinfo: "skip", name: `${run.label} (95 %)`, meta: "band",
      });
    }
    traces.push({
      x, y, name: run.label, meta: "rank", type: "scatter", connectgaps: false,
      mode: dots ? "lines+markers" : "lines",
      line: { color: colour, width: 2.2, dash: run.exact ? "solid" : "dot" },
      marker: { size: 7, symbol: hr.symbol(run), color: colour },
      text: run.records.map((r) => hover(run, r, state)), hovertemplate: "%{text}<extra></extra>",
    });
    if (state.smooth)
      for (const [key, title] of Object.entries(SMOOTH)) {
        const values = run.records.map((r) => hr.scaled(measure(r, key), r, state.unit));
        if (values.some((v) => v !== null))
          traces.push({
            x, y: values, name: `${run.label}: ${title}`, meta: key, mode: "lines",
            line: { color: colour, width: 1.2, dash: "dashdot" },
            hovertemplate: `${escape(run.label)}: ${title} %{y:.4~g}<extra></extra>`,
          });
      }
    return traces;
  };

  /** Runs that share a name up to a number, as mean and range. */
  const groupTraces = (name, runs, state, colour) => {
    const found = new Map();
    for (const run of runs)
      for (const r of run.records) {
        const [x, y] = [hr.axisValue(r, state.x), hr.scaled(hr.count(r, state.tolerance), r, state.unit)];
        if (x !== null && y !== null) found.set(x, [...(found.get(x) || []), y]);
      }
    const x = [...found.keys()].sort((a, b) => a - b);
    const at = x.map((k) => found.get(k));
    const mean = at.map((v) => v.reduce((a, b) => a + b, 0) / v.length);
    return [
      {
        x: [...x, ...[...x].reverse()],
        y: [...at.map((v) => Math.max(...v)), ...at.map((v) => Math.min(...v)).reverse()],
        fill: "toself", fillcolor: hr.transparent(colour, 0.2), line: { width: 0 }, mode: "lines",
        hoverinfo: "skip", name: `${name} (range)`, meta: "band",
      },
      {
        x, y: mean, name, meta: "rank", group: name, mode: "lines", line: { color: colour, width: 2.4 },
        text: at.map((v) => `<b>${escape(name)}</b>, mean of ${v.length} runs`),
        hovertemplate: "%{text}: %{y:.5~g}<extra></extra>",
      },
    ];
  };

  /** One line for each distinct bound; runs that share one share the line, whatever it is worth. */
  const bounds = (runs, state) => {
    const found = new Map();
    const add = (value, name, worth, run, record) => {
      const level = hr.scaled(known(value) ? value : null, record, state.unit);
      if (level === null) return;
      const key = `${name} ${level}`;
      if (!found.has(key)) found.set(key, { level, name, values: new Set(), worths: new Set(), runs: new Set() });
      const bound = found.get(key);
      bound.runs.add(run);
      bound.values.add(value);
      if (worth) bound.worths.add(worth);
    };
    for (const run of runs) {
      const record = hr.last(run);
      add(record.bound, "bound", hr.worth(record), run, record);
      if (state.batchBound) add(record.batch_bound, "bound on these data", "theorem", run, record);
    }
    for (const bound of found.values()) {
      const value = bound.values.size === 1 ? ` ${number([...bound.values][0])}` : "";
      const worth = bound.worths.size ? ` (${[...bound.worths].sort().reverse().join(" or ")})` : "";
      bound.text = `${bound.name}${value}${worth}`;
    }
    return [...found.values()];
  };

  const boundTrace = (bound, [low, high], total, theme) => {
    const alone = bound.runs.size === 1 && total > 1;
    const colour = alone ? hr.colour([...bound.runs][0], theme) : theme.text;
    const names = [...bound.runs].map((run) => escape(run.label));
    const of = total === 1 ? "" : `<br>of ${names.slice(0, 5).join(", ")}${names.length > 5 ? " …" : ""}`;
    return {
      x: [low, (low + high) / 2, high], y: [bound.level, bound.level, bound.level], mode: "lines",
      name: bound.text, meta: "bound",
      line: { color: colour, width: 1.6, dash: bound.name === "bound" ? "dash" : "longdashdot" },
      hovertemplate: `${bound.text}${of}<extra></extra>`,
    };
  };

  /** Texts that end at the same place one above the other, at least so many pixels apart. */
  const apart = (labels, top, height, log) => {
    const pixel = (y) => (log ? Math.log10(Math.max(y, 1e-12)) : y);
    const [low, high] = top;
    const at = (y) => ((pixel(y) - low) / (high - low)) * height;
    const sorted = [...labels].sort((a, b) => at(a.y) - at(b.y));
    const floors = new Map();
    for (const label of sorted) {
      const wanted = Math.max(at(label.y), (floors.get(label.x) ?? -Infinity) + 15);
      label.yshift = wanted - at(label.y);
      floors.set(label.x, wanted);
    }
    return sorted;
  };

  /** The end of a bound's line above which fewer curves run, for its name. */
  const freeSide = (level, curves, [low, high], log) => {
    const scale = (y) => (log ? Math.log10(Math.max(y, 1e-12)) : y);
    const near = (y) => known(y) && scale(y) > scale(level) - 0.01 * (high - low) && scale(y) < scale(level) + 0.1 * (high - low);
    const left = curves.filter((t) => t.y.slice(0, Math.ceil(t.y.length / 4)).some(near)).length;
    const right = curves.filter((t) => t.y.slice(-Math.ceil(t.y.length / 4)).some(near)).length;
    return right < left ? { x: 0.99, xanchor: "right" } : { x: 0.01, xanchor: "left" };
  };

  const yRange = (traces, log) => {
    const values = traces.flatMap((t) => t.y).filter((y) => known(y) && (!log || y > 0));
    if (!values.length) return [0, 1];
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const room = 0.12 * (most - least);
    // From zero, unless that would press what moves into a line.
    if (!log && room > 0 && least > 0.4 * most) return [least - room, most + room];
    if (!log) return [0, most > 0 ? 1.1 * most : 1];
    return [Math.log10(Math.min(...values)) - 0.08, Math.log10(most) + 0.1];
  };

  const xRange = (traces) => {
    const values = traces.flatMap((t) => t.x).filter(known);
    if (!values.length) return [0, 1];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low || 1) * 0.02;
    return [low - room, high + room];
  };

  const grouped = (runs) => {
    const found = new Map();
    for (const run of runs) found.set(hr.group(run), [...(found.get(hr.group(run)) || []), run]);
    return found;
  };

  const endLabels = (traces, theme, unit) =>
    traces.filter((t) => t.meta === "rank").map((t) => {
      const end = t.y.map(known).lastIndexOf(true);
      return end < 0 ? null : {
        x: t.x[end], y: t.y[end], text: `${t.group ? `${escape(t.group)} ` : ""}<b>${UNITS[unit].text(t.y[end])}</b>`, showarrow: false,
        xanchor: "left", xshift: 8, font: { size: 13, color: t.line.color },
      };
    }).filter(Boolean);

  /** The chart of all visible runs, with the table behind it. */
  const rankChart = (runs, state, theme, height) => {
    const traces = [];
    if (state.groups)
      [...grouped(runs)].forEach(([name, members], i) =>
        traces.push(...(members.length > 1 ? groupTraces(name, members, state, theme.runs[i % theme.runs.length])
          : runTraces(members[0], state, theme))));
    else for (const run of runs) traces.push(...runTraces(run, state, theme));
    const shown = traces.filter((t) => t.meta === "rank");
    const span = xRange(traces);
    const lines = bounds(runs, state);
    traces.unshift(...lines.map((b) => boundTrace(b, span, runs.length, theme)));
    const range = yRange(traces, state.log);
    const labels = shown.length <= MOST_LABELS ? endLabels(traces, theme, state.unit) : [];
    const placed = apart(labels, range, height - 60, state.log);
    const named = lines.length <= 4 ? lines : [];
    const boundLabels = named.map((b) => ({
      xref: "paper", ...freeSide(b.level, shown, range, state.log), y: b.level, yanchor: "bottom", showarrow: false,
      text: b.text,
      font: { size: 12, color: theme.text }, bgcolor: hr.transparent(theme.paper, 0.75),
    }));
    const annotations = [...placed, ...boundLabels].map((a) => ({
      ...a, y: state.log ? Math.log10(Math.max(a.y, 1e-12)) : a.y,
    }));
    return {
      traces, table: rankTable(runs, state),
      layout: hr.layout(theme, {
        height, annotations, margin: { l: 62, r: state.groups ? 150 : 78, t: 14, b: 44 },
        xaxis: { title: { text: state.x }, range: span },
        yaxis: {
          title: { text: UNITS[state.unit].title }, type: state.log ? "log" : "linear", range,
          tickformat: state.unit === "count" ? "~s" : ".0%",
        },
      }),
    };
  };

  const rankTable = (runs, state) => ({
    columns: ["run", "step", "epoch", "tolerance", "rank", "lower", "upper", "exact", "bound",
      "bound_is_theorem", "batch_bound", "parameters"],
    rows: runs.flatMap((run) => run.records.map((r) => {
      const range = hr.interval(r, state.tolerance) || [null, null];
      const rtol = state.tolerance === "own" ? r.rtol : state.tolerance;
      return [run.run, r.step, r.epoch, rtol, hr.count(r, state.tolerance), ...range, run.exact,
        r.bound, r.bound_is_theorem, r.batch_bound, r.num_parameters];
    })),
  });

  Object.assign(hr, { rankChart, hasSmooth: (runs) =>
    runs.some((run) => run.records.some((r) => Object.keys(SMOOTH).some((k) => measure(r, k) !== null))) });
})((window.hessrank = window.hessrank || {}));
