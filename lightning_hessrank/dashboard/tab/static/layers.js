// Where the rank is: layers over time, and the two parts of the Hessian.
(function (hr) {
  "use strict";
  const { known, number, percent, escape } = hr;
  const MOST_PANELS = 24, PANEL_WIDTH = 210, PANEL_HEIGHT = 120;

  /** Layers of a run: name, what limits its rank, and the rank at each step. */
  const layersOf = (run) => {
    const table = run.about && Array.isArray(run.about.layers) ? run.about.layers.filter(Array.isArray) : [];
    const columns = (run.details || []).filter((d) => d.layers && d.layers.length === table.length);
    const bounded = table.length > 0 && table.every(([, , bound]) => known(bound));
    const shared = shorten(table.map(([name]) => name));
    return {
      columns, of: bounded ? "bound" : "parameters",
      layers: table.map(([name, parameters, bound], i) => ({
        name, label: shared[i], parameters, bound, limit: bounded ? bound : parameters,
        ranks: columns.map((d) => d.layers[i]),
      })),
    };
  };

  /** Dotted names without what all of them begin with. */
  const shorten = (names) => {
    const parts = names.map((name) => name.split("."));
    let same = 0;
    while (names.length > 1 && parts.every((p) => p.length > same + 2 && p[same] === parts[0][same])) same += 1;
    return parts.map((p) => p.slice(same).join(".")).map((n) => (n.length <= 26 ? n : `${n.slice(0, 8)}…${n.slice(-17)}`));
  };

  const share = (rank, limit) => (known(rank) && known(limit) && limit > 0 ? rank / limit : null);

  const layersChart = (run, state, theme) => {
    const { layers, columns, of } = layersOf(run);
    const x = columns.map((d) => hr.axisValue(hr.recordAt(run, d.step), state.x));
    const z = layers.map((layer) => layer.ranks.map((rank) => share(rank, layer.limit)));
    const text = layers.map((layer) => layer.ranks.map((rank, j) =>
      `<b>${escape(layer.name)}</b>, step ${number(columns[j].step)}<br>rank ${number(rank)} of ` +
      `${of} ${number(layer.limit)} (${percent(share(rank, layer.limit))})`));
    const most = Math.max(1, ...z.flat().filter(known));
    const height = Math.min(560, Math.max(360, 90 + 22 * layers.length));
    const stride = Math.ceil((layers.length * 15) / (height - 70));
    const named = layers.map((_, i) => i).filter((i) => i % stride === 0);
    return {
      traces: [{
        type: "heatmap", x: hr.edges(x), y: layers.map((_, i) => i), z, text, meta: "layers",
        customdata: layers.map((l) => l.ranks), colorscale: theme.share, zmin: 0, zmax: most,
        hovertemplate: "%{text}<extra></extra>", hoverongaps: false, xgap: columns.length < 40 ? 1 : 0, ygap: 1,
        colorbar: { thickness: 10, outlinewidth: 0, tickformat: ".0%", len: 1, title: { text: "" } },
      }],
      table: layersTable(run),
      layout: hr.layout(theme, {
        height, margin: { l: 90, r: 16, t: 30, b: 44 },
        xaxis: { title: { text: state.x } },
        yaxis: { autorange: "reversed", tickvals: named, ticktext: named.map((i) => escape(layers[i].label)), ticks: "" },
      }),
    };
  };

  const layersTable = (run) => {
    const { layers, columns } = layersOf(run);
    return {
      columns: ["run", "step", "layer", "rank", "bound", "parameters"],
      rows: columns.flatMap((d, j) =>
        layers.map((l) => [run.run, d.step, l.name, l.ranks[j], l.bound, l.parameters])),
    };
  };

  /** One small chart for each layer; of many those whose rank has changed most. */
  const panelsChart = (run, state, theme, width) => {
    const { layers, columns, of } = layersOf(run);
    const moved = (l) => {
      const values = l.ranks.map((r) => share(r, l.limit)).filter(known);
      return values.length ? Math.max(...values) - Math.min(...values) : -1;
    };
    const chosen = layers.length <= MOST_PANELS ? layers
      : [...layers].sort((a, b) => moved(b) - moved(a)).slice(0, MOST_PANELS);
    const across = Math.max(1, Math.min(chosen.length, Math.floor(width / PANEL_WIDTH)));
    const down = Math.ceil(chosen.length / across);
    const x = columns.map((d) => hr.axisValue(hr.recordAt(run, d.step), state.x));
    const height = down * PANEL_HEIGHT + 40;
    const traces = [], axes = {}, annotations = [];
    chosen.forEach((layer, i) => {
      const id = i ? String(i + 1) : "";
      const [column, row] = [i % across, Math.floor(i / across)];
      const left = column / across, bottom = 1 - (row + 1) / down;
      axes[`xaxis${id}`] = { anchor: `y${id}`, domain: [left + 0.03, left + 0.93 / across], nticks: 3, showgrid: false };
      const limit = Math.max(layer.limit || 0, ...layer.ranks.filter(known));
      axes[`yaxis${id}`] = { anchor: `x${id}`, domain: [bottom + 0.2 / down, bottom + 0.82 / down], range: [0, 1.12 * limit || 1], nticks: 3, tickformat: "~s" };
      traces.push({
        x, y: layer.ranks, xaxis: `x${id}`, yaxis: `y${id}`, mode: x.length > 30 ? "lines" : "lines+markers",
        line: { color: theme.signs[0], width: 1.8 }, marker: { size: 4 }, meta: "rank", name: layer.name,
        hovertemplate: `${escape(layer.name)}: rank %{y:,}<extra></extra>`,
      });
      if (known(layer.limit) && x.length) traces.push({
        x: [x[0], x[x.length - 1]], y: [layer.limit, layer.limit], xaxis: `x${id}`, yaxis: `y${id}`, mode: "lines",
        line: { color: theme.faint, width: 1.3, dash: "dash" }, meta: of, hovertemplate: `${of} %{y:,}<extra></extra>`,
      });
      annotations.push({ xref: "paper", yref: "paper", x: left + 0.03, y: bottom + 0.98 / down, xanchor: "left", yanchor: "top",
        text: `<b>${escape(layer.label)}</b>  ${number(layer.ranks[layer.ranks.length - 1])} of ${of} ${number(layer.limit)}`, showarrow: false, font: { size: 11 } });
    });
    return {
      traces, table: layersTable(run), hidden: layers.length - chosen.length,
      layout: hr.layout(theme, { ...axes, height, annotations, margin: { l: 24, r: 8, t: 8, b: 8 } }),
    };
  };

  const PARTS = [["rank", "bound", "total"], ["rank_outer", "bound_outer", "outer-product (Gauss–Newton)"],
    ["rank_functional", "bound_functional", "functional"]];

  const hasParts = (run) => run.records.some((r) => known(r.rank_outer) || known(r.rank_functional));

  /** The Hessian and the two parts whose sum it is, each with its own bound. */
  const partsChart = (run, state, theme, height) => {
    const x = run.records.map((r) => hr.axisValue(r, state.x));
    const colours = [theme.text, theme.signs[0], theme.signs[1]];
    const traces = PARTS.flatMap(([rank, bound, name], k) => {
      const y = run.records.map((r) => (known(r[rank]) ? r[rank] : null));
      const limit = run.records.map((r) => (known(r[bound]) ? r[bound] : null));
      const line = { color: colours[k], width: 2 };
      return [
        { x, y, name, meta: rank, mode: x.length > 40 ? "lines" : "lines+markers", line, marker: { size: 6, symbol: hr.SYMBOLS[k] },
          hovertemplate: `${name}: rank %{y:,}<extra></extra>` },
        { x, y: limit, name: `bound of ${name}`, meta: bound, showlegend: false, mode: "lines", line: { ...line, width: 1.3, dash: "dash" },
          hovertemplate: `bound of ${name}: %{y:,}<extra></extra>` },
      ].filter((t) => t.y.some(known));
    });
    const most = Math.max(1, ...traces.flatMap((t) => t.y).filter(known));
    return {
      traces,
      table: {
        columns: ["run", "step", ...PARTS.flatMap(([rank, bound]) => [rank, bound])],
        rows: run.records.map((r) => [run.run, r.step, ...PARTS.flatMap(([rank, bound]) => [r[rank], r[bound]])]),
      },
      layout: hr.layout(theme, {
        height, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        margin: { l: 62, r: 24, t: 40, b: 44 },
        xaxis: { title: { text: state.x } },
        yaxis: { title: { text: "rank" }, range: [0, 1.08 * most], tickformat: "~s" },
      }),
    };
  };

  /** Flat directions that symmetries explain, in words; nothing where it was not measured. */
  const flatWords = (run) => {
    const flat = hr.last(run).flat_directions;
    const [explained, of] = Array.isArray(flat) ? flat : flat ? [flat.explained, flat.of] : [];
    return known(explained) && known(of)
      ? `${number(explained)} of ${number(of)} flat directions are explained by symmetries of the network.` : "";
  };

  Object.assign(hr, { layersOf, layersChart, panelsChart, partsChart, hasParts, flatWords });
})((window.hessrank = window.hessrank || {}));
