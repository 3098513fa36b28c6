// Colours, and what all charts have in common.
(function (hr) {
  "use strict";

  // After Okabe and Ito, and Paul Tol: apart for readers with any common colour blindness.
  const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d",
    "#8c564b", "#117733", "#e73f74"];
  const DARK = ["#5ab4f0", "#ff8f4d", "#3fd0a4", "#e8a3cb", "#e6c34a", "#9bd3f7", "#c59bd6",
    "#c9a18f", "#7ccf8a", "#ff8fb0"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross"];

  const THEMES = {
    light: {
      dark: false, text: "#3c4043", faint: "#80868b", grid: "#e8eaed", paper: "#ffffff",
      shade: "rgba(128,134,139,0.13)", runs: LIGHT, tolerance: "#80868b",
      positive: [[0, "#e3eef7"], [0.5, "#4a9bd0"], [1, "#084a80"]],
      negative: [[0, "#fbe9df"], [0.5, "#e8803f"], [1, "#8f3300"]],
      share: [[0, "#f3f6f4"], [0.5, "#7fc4ae"], [1, "#00604a"]],
      signs: ["#0072b2", "#d55e00"],
    },
    dark: {
      dark: true, text: "#e3e3e3", faint: "#9aa0a6", grid: "#46484c", paper: "#303030",
      shade: "rgba(200,205,210,0.12)", runs: DARK, tolerance: "#bdc1c6",
      positive: [[0, "#27475f"], [0.5, "#3f97d3"], [1, "#c5e6ff"]],
      negative: [[0, "#5c3a26"], [0.5, "#e07a38"], [1, "#ffe0cb"]],
      share: [[0, "#37423e"], [0.5, "#2f9c7c"], [1, "#bff5e2"]],
      signs: ["#5ab4f0", "#ff8f4d"],
    },
  };

  const FONT = { family: "Roboto, 'Helvetica Neue', Arial, sans-serif", size: 12 };

  /** Layout of a chart, with what it has of its own. */
  const layout = (theme, own) => {
    const axis = (extra) => ({
      gridcolor: theme.grid, zeroline: false, linecolor: theme.faint, ticks: "outside", ticklen: 4,
      tickcolor: theme.grid, automargin: true, ...extra,
      title: { font: { size: 12, color: theme.faint }, standoff: 6, ...extra.title },
    });
    const axes = Object.fromEntries(
      Object.entries(own).filter(([key]) => /^[xy]axis/.test(key)).map(([k, v]) => [k, axis(v)]),
    );
    return {
      font: { ...FONT, color: theme.text },
      paper_bgcolor: theme.paper, plot_bgcolor: theme.paper,
      margin: { l: 58, r: 24, t: 12, b: 44 },
      showlegend: false, hovermode: "closest", uirevision: "kept",
      hoverlabel: { align: "left", font: { ...FONT, size: 12 } },
      ...own, ...axes,
    };
  };

  const transparent = (colour, alpha) => {
    const value = parseInt(colour.slice(1), 16);
    return `rgba(${value >> 16},${(value >> 8) & 255},${value & 255},${alpha})`;
  };

  Object.assign(hr, { THEMES, SYMBOLS, layout, transparent });
})((window.hessrank = window.hessrank || {}));
