// The spectrum over time: where the eigenvalues lie, by size and sign, and how they are cut.
(function (hr) {
  "use strict";
  const { known, number, scientific, escape } = hr;
  const PER_DECADE = 4, BELOW = 3; // decades shown below the tolerance; what is smaller is rounding

  /** Edges of the cells of a heat map over these positions, half way between them. */
  const edges = (at) => {
    if (at.length === 1) return [at[0] - 0.5, at[0] + 0.5];
    const inner = at.slice(1).map((x, i) => (x + at[i]) / 2);
    return [2 * at[0] - inner[0], ...inner, 2 * at[at.length - 1] - inner[inner.length - 1]];
  };

  const withSpectrum = (run) => (run.details || []).filter((d) => d.spectrum);
  const recordAt = (run, step) => run.records.find((r) => r.step === step) || hr.last(run);

  /** First and last bin that all columns together need. */
  const extent = (run, columns) => {
    const tops = columns.map(({ spectrum: s }) => s.bins + Math.max(s.positive.length, s.negative.length));
    const cuts = columns.map((d) => recordAt(run, d.step).tolerance).filter((t) => known(t) && t > 0);
    const top = Math.max(...tops);
    const lowest = Math.min(...columns.map((d) => d.spectrum.bins));
    const cut = cuts.length ? Math.floor((Math.log10(Math.min(...cuts)) - BELOW) * PER_DECADE) : lowest;
    return [Math.max(lowest, Math.min(cut, top - 4 * PER_DECADE)), top];
  };

  /** Counts of one sign in the bins of the extent, by bin and column; null where there are none. */
  const cells = (columns, sign, [low, high]) => {
    const z = [];
    for (let bin = low; bin < high; bin += 1)
      z.push(columns.map(({ spectrum: s }) => s[sign][bin - s.bins] || null));
    return z;
  };

  const heat = (columns, sign, [low, high], x, theme, most) => {
    const direction = sign === "positive" ? 1 : -1;
    const z = cells(columns, sign, [low, high]);
    const y = z.map((_, i) => (direction * (i + 0.5)) / PER_DECADE);
    const text = z.map((row, i) => row.map((n, j) => {
      const from = 10 ** ((low + i) / PER_DECADE), to = 10 ** ((low + i + 1) / PER_DECADE);
      return n === null ? "" : `<b>${number(n)}</b> ${sign} between ${scientific(from)} and ` +
        `${scientific(to)}<br>step ${number(columns[j].step)}`;
    }));
    return {
      type: "heatmap", x: edges(x), y, z: z.map((row) => row.map((n) => (n ? Math.log10(n) : null))),
      text, customdata: z, meta: sign, name: sign, colorscale: theme[sign], zmin: -0.15, zmax: most,
      showscale: false, hoverongaps: false, hovertemplate: "%{text}<extra></extra>",
    };
  };

  const ticks = ([low, high]) => {
    const base = low / PER_DECADE;
    const [from, to] = [Math.ceil(base + Math.max(0.8, 0.06 * (high - low) / PER_DECADE)), Math.floor(high / PER_DECADE)];
    const stride = Math.max(1, Math.ceil((to - from) / 5));
    const at = [];
    for (let e = to; e >= from; e -= stride) at.push(e);
    return {
      tickvals: [...at.map((e) => e - base), ...at.map((e) => base - e)],
      ticktext: [...at.map((e) => `+1e${e}`), ...at.map((e) => `−1e${e}`)],
    };
  };

  /** Step × size of the eigenvalues, positive above and negative below, with the tolerance. */
  const densityChart = (run, state, theme, height) => {
    const columns = withSpectrum(run);
    const span = extent(run, columns);
    const x = columns.map((d) => hr.axisValue(recordAt(run, d.step), state.x));
    const most = Math.log10(Math.max(2, ...columns.flatMap(({ spectrum: s }) => [...s.positive, ...s.negative])));
    const base = span[0] / PER_DECADE;
    const cut = columns.map((d) => Math.log10(recordAt(run, d.step).tolerance) - base);
    const lines = [1, -1].map((sign) => ({
      x, y: cut.map((y) => sign * y), mode: columns.length > 1 ? "lines" : "markers", meta: "tolerance",
      line: { color: theme.text, width: 1.6, dash: "dot" }, marker: { color: theme.text, symbol: "line-ew-open", size: 18 },
      hovertemplate: `tolerance: what lies between the dotted lines is not counted<extra></extra>`,
    }));
    const chosen = state.step === null ? columns[columns.length - 1].step : state.step;
    const end = cut[cut.length - 1];
    const side = (y, text) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 6, y, text, showarrow: false, align: "left",
      font: { color: theme.faint, size: 11 },
    });
    const top = (span[1] - span[0]) / PER_DECADE;
    const record = recordAt(run, columns[columns.length - 1].step);
    return {
      traces: [...["positive", "negative"].map((s) => heat(columns, s, span, x, theme, most)), ...lines],
      table: densityTable(run, columns),
      layout: hr.layout(theme, {
        height, margin: { l: 62, r: 96, t: 14, b: 44 },
        xaxis: { title: { text: state.x } },
        yaxis: { title: { text: "eigenvalue (log scale, both signs)" }, range: [-top, top], ...ticks(span) },
        shapes: [{
          type: "line", x0: hr.axisValue(recordAt(run, chosen), state.x), yref: "paper", y0: 0, y1: 1,
          x1: hr.axisValue(recordAt(run, chosen), state.x), line: { color: theme.faint, width: 1 },
        }, {
          type: "rect", xref: "paper", x0: 0, x1: 1, y0: -end, y1: end, fillcolor: theme.shade, line: { width: 0 },
        }],
        annotations: [
          side((top + end) / 2, "positive,<br>counted"), side(-(top + end) / 2, "negative,<br>counted"),
          ...(end > 0.3 * top ? [side(0, "below the<br>tolerance")] : []),
          ...(known(record.tolerance) ? [] : [side(0, "tolerance<br>not known")]),
        ],
      }),
    };
  };

  /** Where a method has no eigenvalues: how many lie beyond each tolerance that it knows. */
  const countsChart = (run, state, theme, height) => {
    const labels = [...new Set(run.records.flatMap((r) => Object.keys(r.counts || {})))]
      .sort((a, b) => (a === "machine") - (b === "machine") || Number(b) - Number(a));
    const x = run.records.map((r) => hr.axisValue(r, state.x));
    const traces = labels.map((label, i) => ({
      x, y: run.records.map((r) => hr.count(r, label)), name: label, meta: "counts",
      mode: x.length > 40 ? "lines" : "lines+markers",
      line: { color: theme.runs[i % theme.runs.length], width: 1.8, dash: run.exact ? "solid" : "dot" },
      marker: { size: 6, symbol: run.exact ? "circle" : "circle-open" },
      hovertemplate: `%{y:,.5~g} beyond ${label}${label === "machine" ? "" : " · max |λ|"}<extra></extra>`,
    }));
    return {
      traces,
      table: {
        columns: ["run", "step", ...labels],
        rows: run.records.map((r) => [run.run, r.step, ...labels.map((label) => hr.count(r, label))]),
      },
      layout: hr.layout(theme, {
        height, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        margin: { l: 62, r: 24, t: 40, b: 44 },
        xaxis: { title: { text: state.x } },
        yaxis: { title: { text: "eigenvalues beyond each tolerance" }, rangemode: "tozero", tickformat: "~s" },
      }),
    };
  };

  const densityTable = (run, columns) => ({
    columns: ["run", "step", "sign", "from", "to", "eigenvalues"],
    rows: columns.flatMap(({ step, spectrum: s }) =>
      ["positive", "negative"].flatMap((sign) => s[sign].map((n, i) => [run.run, step, sign,
        scientific(10 ** ((s.bins + i) / PER_DECADE)), scientific(10 ** ((s.bins + i + 1) / PER_DECADE)), n])
        .filter((row) => row[5]))),
  });

  const verticals = (record, theme) => {
    const found = [[record.rank, `rank ${number(record.rank)}`, theme.signs[0], "solid"]];
    if (known(record.bound))
      found.push([record.bound, `bound ${number(record.bound)} (${hr.worth(record)})`, theme.text, "dash"]);
    if (known(record.batch_bound))
      found.push([record.batch_bound, `bound on these data ${number(record.batch_bound)}`, theme.faint, "dashdot"]);
    return found.filter(([at]) => known(at));
  };

  /** Sorted |λ| at one step, with rank, bounds and tolerance; counts where there are no eigenvalues. */
  const sortedChart = (run, step, theme, height) => {
    const detail = withSpectrum(run).find((d) => d.step === step);
    const record = recordAt(run, step);
    const traces = detail ? curve(detail.spectrum, theme) : countCurve(run, record, theme);
    const lines = verticals(record, theme);
    const needed = [...lines.map(([at]) => at), ...(detail ? [] : traces[0].x)];
    const wide = Math.min(1.35 * Math.max(...needed, 5), 1.04 * (record.num_parameters || Infinity));
    const levels = traces.flatMap((t) => t.y).filter((y) => known(y) && y > 0);
    const cut = detail ? record.tolerance : record.rtol;
    const floor = Math.max(Math.min(...levels), (cut || 1e-300) / 1e3, Math.max(...levels) * 1e-18);
    const range = [Math.log10(floor) - 0.3, Math.log10(Math.max(...levels)) + 0.5];
    const shapes = lines.map(([at, , color, dash]) => ({
      type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color, width: 1.5, dash },
    }));
    if (known(cut) && cut > 0) shapes.push(
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: cut, y1: cut, line: { color: theme.tolerance, width: 1.4, dash: "dot" } },
      { type: "rect", xref: "paper", x0: 0, x1: 1, y0: 10 ** range[0], y1: cut, fillcolor: theme.shade, line: { width: 0 } });
    const names = lines.map(([at, text, color], i) => ({
      x: at, yref: "paper", y: 0.99 - 0.085 * i, yanchor: "top", text, showarrow: false, font: { color, size: 12 },
      xanchor: at > wide * 0.55 ? "right" : "left", xshift: at > wide * 0.55 ? -5 : 5,
      bgcolor: hr.transparent(theme.paper, 0.8),
    }));
    if (known(cut) && cut > 0) names.push({
      xref: "paper", x: 0.01, xanchor: "left", y: Math.log10(cut), yanchor: "top", showarrow: false,
      text: `tolerance ${scientific(cut)}${detail ? "" : " · max |λ|"}`, font: { color: theme.faint, size: 11 },
    });
    return {
      traces, table: sortedTable(run, step, detail, record),
      layout: hr.layout(theme, {
        height, shapes, annotations: names, margin: { l: 66, r: 24, t: 14, b: 44 },
        xaxis: { title: { text: detail ? "eigenvalues, largest first" : "eigenvalues beyond the tolerance" }, range: [0, wide] },
        yaxis: { title: { text: detail ? "|λ|" : "tolerance / max |λ|" }, type: "log", range, exponentformat: "power", dtick: Math.ceil((range[1] - range[0]) / 7) },
      }),
    };
  };

  const curve = (spectrum, theme) => [1, -1].map((sign, k) => {
    const kept = spectrum.at.map((at, i) => [at, spectrum.values[i]]).filter(([, v]) => Math.sign(v) === sign);
    return {
      x: kept.map((p) => p[0]), y: kept.map((p) => Math.abs(p[1])), mode: "markers", meta: k ? "negative" : "positive",
      name: k ? "negative" : "positive",
      marker: { size: 5, color: theme.signs[k], symbol: k ? "triangle-down" : "circle" },
      hovertemplate: `number %{x:,}: λ = ${k ? "−" : "+"}%{y:.3~g}<extra></extra>`,
    };
  });

  const countCurve = (run, record, theme) => {
    const points = Object.entries(record.counts || {}).filter(([t, n]) => known(Number(t)) && known(n));
    if (known(record.rtol) && known(record.rank)) points.push([record.rtol, record.rank]);
    points.sort((a, b) => b[0] - a[0]);
    return [{
      x: points.map((p) => p[1]), y: points.map((p) => Number(p[0])), mode: "lines+markers", meta: "counts",
      name: run.exact ? "counts" : "estimated counts", line: { color: theme.signs[0], width: 1.5 },
      marker: { size: 8, symbol: run.exact ? "circle" : "circle-open" },
      hovertemplate: `%{x:,.5~g} eigenvalues beyond %{y:.2~g} · max |λ|<extra>${escape(run.label)}</extra>`,
    }];
  };

  const sortedTable = (run, step, detail, record) => (detail ? {
    columns: ["run", "step", "position", "eigenvalue"],
    rows: detail.spectrum.at.map((at, i) => [run.run, step, at, detail.spectrum.values[i]]),
  } : {
    columns: ["run", "step", "relative tolerance", "eigenvalues"],
    rows: Object.entries(record.counts || {}).map(([t, n]) => [run.run, step, t, n]),
  });

  Object.assign(hr, { densityChart, countsChart, sortedChart, withSpectrum, edges, recordAt });
})((window.hessrank = window.hessrank || {}));
