// The page: five questions from top to bottom, in the tab and in the report alike.
(function (hr) {
  "use strict";
  const { el, known, number } = hr;
  const HEIGHT = 360, LOWER = 360;

  const ATTACH = "trainer = Trainer(callbacks=[HessianRankMonitor()])";
  class View {
    /**
     * @param root element to fill
     * @param load run -> promise of {about, details}: spectra and layers of one run
     * @param report whether this is the page to hand on
     */
    constructor(root, load, report = false) {
      Object.assign(this, { root, load, report, places: new Map(), loaded: new Map(), runs: [], broken: [] });
      this.theme = hr.THEMES.light;
      this.state = {
        x: "step", tolerance: "own", unit: "count", log: false, smooth: false, groups: false, batchBound: false,
        hidden: new Set(), run: null, step: null, against: "num_parameters", sort: [0, false],
      };
      this.panels = {
        rank: hr.panel("rank", "Rank of the loss Hessian"), density: hr.panel("density", "All eigenvalues over time"),
        sorted: hr.panel("sorted", "Sorted eigenvalues"), layers: hr.panel("layers", "Layer by layer"),
        parts: hr.panel("parts", "The two parts"), panels: hr.panel("panels", "Each layer"), across: hr.panel("across", "Final rank against"),
      };
      this.panels.density.plot.addEventListener("click", () => this.pick());
      this.parts = Object.fromEntries(["controls", "verdicts", "trust", "warnings", "chooser", "flat", "bounds", "axis", "summary", "about", "note"]
        .map((name) => [name, el(name === "verdicts" ? "ul" : "div", { class: name })]));
      root.classList.add("hessian");
    }

    /** Take up what was read, anew after each reload. */
    update(payload) {
      this.broken = payload.broken || [];
      this.others = payload.others || [];
      this.runs = hr.prepare(payload.runs || [], this.places);
      if (!this.runs.some((run) => run.id === this.state.run)) this.state.run = null;
      this.loaded = new Map([...this.loaded].filter(([id, got]) =>
        this.runs.some((run) => run.id === id && run.records.length === got.at)));
      this.lay();
      this.draw();
    }

    setDark(dark) {
      this.theme = dark ? hr.THEMES.dark : hr.THEMES.light;
      this.root.dataset.theme = dark ? "dark" : "light";
      if (this.runs.length) this.draw();
    }

    fail(message) {
      this.root.replaceChildren(el("p", { class: "empty" }, message));
      this.laid = "";
    }

    visible() {
      return this.runs.filter((run) => !this.state.hidden.has(run.id));
    }

    chosen() {
      const shown = this.visible().length ? this.visible() : this.runs;
      const found = this.runs.find((run) => run.id === this.state.run) || shown.find((run) => !run.old && hr.hasParts(run))
        || shown.find((run) => hr.last(run).method === "dense") || shown[0];
      return { ...found, ...(this.loaded.get(found.id) || {}) };
    }

    set(changes, parts = ["controls"]) {
      Object.assign(this.state, changes);
      this.draw(parts);
    }

    /** Put the page together, once for empty and once for filled. */
    lay() {
      const wanted = this.runs.length ? "filled" : "empty";
      if (this.laid === wanted && wanted === "filled") return;
      this.laid = wanted;
      this.root.replaceChildren(...(wanted === "filled" ? this.filled() : this.empty()));
    }

    empty() {
      const others = this.others.length ? `${this.others.length} ${this.others.length === 1 ? "run is" : "runs are"} here, but none with the callback.` : "There are no runs here yet.";
      return [el("div", { class: "empty" }, el("h2", null, "No rank of a loss Hessian has been measured here"),
        el("p", null, `${others} Attach it to a Lightning Trainer:`), el("pre", null, `from lightning_hessrank import HessianRankMonitor\n\n${ATTACH}`),
        hr.warnings([], this.broken))];
    }

    filled() {
      const { panels: p, parts } = this;
      const heading = (text, ...more) => el("h2", null, text, ...more);
      const page = [
        parts.controls, el("div", { class: "wide-left" }, p.rank.node, parts.verdicts), parts.note,
        heading("Can I trust it?"), el("div", { class: "scroll" }, parts.trust), parts.warnings,
        heading("The spectrum over time"), parts.chooser, el("div", { class: "halves" }, p.density.node, p.sorted.node),
        heading("Where?"), el("div", { class: "halves" }, p.layers.node, p.parts.node), p.panels.node, parts.flat, parts.bounds,
        heading("Across runs"), parts.axis, el("div", { class: "narrow-left" }, p.across.node, el("section", { class: "panel scroll" }, parts.summary)),
        parts.about,
      ];
      return this.report ? [el("h1", null, document.title), ...page] : page;
    }

    /** Draw everything; what is further down after what is seen first. */
    draw(parts = ["controls"]) {
      if (!this.runs.length) return;
      if (parts.includes("controls")) this.controls();
      this.verdicts();
      this.trust();
      const ready = this.rank();
      clearTimeout(this.later);
      this.later = setTimeout(() => { this.fetch(); this.lower(); }, 0);
      Promise.resolve(ready).then(() => { hr.painted = hr.painted || performance.now(); });
    }

    controls() {
      const { state, runs } = this;
      const set = (key) => (value) => this.set({ [key]: value }, ["controls"]);
      const some = (test) => runs.some((run) => run.records.some(test));
      const axes = [["step", "step"], ["epoch", "epoch"]].filter(([key]) => some((r) => known(r[key])));
      const groups = new Set(runs.map(hr.group)).size < runs.length;
      this.parts.controls.replaceChildren(
        hr.slider("tolerance", hr.TOLERANCES, state.tolerance, (t) => this.toleranceWords(t), (t) => this.set({ tolerance: t }, [])),
        hr.choice("show", [["count", "count"], ["bound", "of bound"], ["parameters", "of parameters"]], state.unit, set("unit")),
        axes.length > 1 ? hr.choice("against", axes, state.x, set("x")) : "",
        hr.check("log scale", state.log, set("log")),
        some((r) => known(r.batch_bound)) ? hr.check("bound on these data", state.batchBound, set("batchBound"), "Holds for the live network on the reference data") : "",
        groups ? hr.check("seeds as a band", state.groups, set("groups"), "Runs whose names differ in a number at the end") : "",
        hr.hasSmooth(runs) ? hr.check("effective ranks", state.smooth, set("smooth"), "Ranks that need no tolerance") : "",
        this.report ? "" : el("a", { class: "save", href: "./report.html", download: "hessian.html", title: "One file with these charts, to hand on" }, "Save as a page"));
    }

    toleranceWords(tolerance) {
      if (tolerance === "machine") return "machine precision";
      if (tolerance !== "own") return `${tolerance} · max |λ|`;
      const machine = this.runs.every((run) => {
        const r = hr.last(run);
        return !known(r.rtol) || r.rtol <= r.num_parameters * 2.3e-16;
      });
      const estimates = this.runs.some((run) => !run.exact);
      return machine && !estimates ? "machine precision (as measured)" : "as each run was measured";
    }

    verdicts() {
      const { state, theme } = this;
      const toggle = (run) => () => {
        const hidden = new Set(state.hidden);
        if (!hidden.delete(run.id)) hidden.add(run.id);
        this.set({ hidden }, []);
      };
      const several = this.runs.length > 1;
      const all = several ? el("li", { class: "all" },
        el("button", { onclick: () => this.set({ hidden: new Set() }, []) }, "all"),
        el("button", { onclick: () => this.set({ hidden: new Set(this.runs.map((run) => run.id)) }, []) }, "none"),
        el("span", { class: "faint" }, `${this.visible().length} of ${this.runs.length} runs shown`)) : "";
      const top = this.parts.verdicts.scrollTop;
      this.parts.verdicts.replaceChildren(...[all, ...this.runs.map((run) => hr.verdict(run, state, theme, toggle(run)))].filter(Boolean));
      this.parts.verdicts.scrollTop = top;
    }

    trust() {
      this.parts.trust.replaceChildren(hr.trustTable(this.runs, this.theme));
      this.parts.warnings.replaceChildren(...[hr.warnings(this.runs, this.broken)].filter(Boolean));
    }

    rank() {
      const runs = this.visible();
      const unknown = runs.filter((run) => hr.count(hr.last(run), this.state.tolerance) === null);
      const old = this.runs.filter((run) => run.old).length;
      const notes = [
        unknown.length ? `Not known at this tolerance: ${unknown.map((run) => run.label).join(", ")}.` : "",
        old ? `${old} of ${this.runs.length} runs were written by version 0.1.0, without spectra, samples and mode.` : "",
      ];
      this.parts.note.textContent = notes.filter(Boolean).join(" ");
      return this.panels.rank.show(runs.length ? hr.rankChart(runs, this.state, this.theme, HEIGHT) : "No run is chosen.", this.facts(runs));
    }

    /** How it was measured, where all runs agree. */
    facts(runs) {
      const agreed = (text) => {
        const found = new Set(runs.map((run) => text(hr.last(run))));
        return found.size === 1 ? [...found][0] : "";
      };
      return [
        agreed((r) => (known(r.num_samples) ? `on ${number(r.num_samples)} samples` : "")),
        agreed((r) => ({ eval: "in evaluation mode", train: "in training mode" })[r.module_mode] || ""),
      ].filter(Boolean).join(", ");
    }

    /** Get spectra and layers of the chosen run, unless they are there. */
    fetch() {
      const run = this.chosen();
      if (this.loaded.has(run.id)) return;
      const entry = { at: run.records.length, about: run.about, details: null };
      this.loaded.set(run.id, entry);
      this.load(run).then((got) => {
        this.loaded.set(run.id, { ...entry, about: { ...run.about, ...got.about }, details: got.details });
        this.lower();
      }, (error) => {
        this.loaded.set(run.id, { ...entry, details: [] });
        this.lower(String(error.message || error));
      });
    }

    lower(trouble = "") {
      const run = this.chosen();
      this.chooser(run);
      if (run.details) {
        this.spectrum(run, trouble);
        this.where(run, trouble);
      }
      this.across();
      this.about(run);
    }

    chooser(run) {
      const steps = this.steps(run);
      const step = steps.includes(this.state.step) ? this.state.step : steps[steps.length - 1];
      this.parts.chooser.replaceChildren(
        hr.select("run", this.runs.map((r) => [r.id, r.label]), run.id, (id) => this.set({ run: id, step: null }, [])),
        hr.slider("at step", steps, step, (s) => number(s), (s) => { this.state.step = s; this.spectrum(this.chosen()); }));
    }

    steps(run) {
      const found = hr.withSpectrum(run).map((d) => d.step);
      return found.length ? found : run.records.map((r) => r.step);
    }

    spectrum(run, trouble = "") {
      const { panels: p, theme, state } = this;
      const steps = this.steps(run);
      const step = steps.includes(state.step) ? state.step : steps[steps.length - 1];
      const has = hr.withSpectrum(run).length > 0;
      const none = run.old ? "version 0.1.0 wrote no spectra: its counts" : `${hr.last(run).method} has no eigenvalues: its counts`;
      const chart = has ? hr.densityChart(run, { ...state, step }, theme, LOWER) : hr.countsChart(run, state, theme, LOWER);
      p.density.show(trouble || chart, has ? "click to choose a step" : none);
      const record = hr.recordAt(run, step);
      const drawable = has || (known(record.rank) && Object.keys(record.counts || {}).length);
      p.sorted.show(drawable ? hr.sortedChart(run, step, theme, LOWER) : "No rank was found at this step.", `step ${number(step)}${run.exact ? "" : ", estimated"}`);
      this.listen();
    }

    /** A click on a column of the heat map chooses its step. */
    listen() {
      const { plot } = this.panels.density;
      if (plot.on && !plot.listening) {
        plot.listening = true;
        plot.on("plotly_hover", ({ points: [point] }) => { this.pointed = point; });
        plot.on("plotly_unhover", () => { this.pointed = null; });
      }
    }

    pick() {
      const { pointed } = this;
      if (!pointed || !Array.isArray(pointed.pointIndex)) return;
      const run = this.chosen();
      this.state.step = hr.withSpectrum(run)[pointed.pointIndex[1]].step;
      this.chooser(run);
      this.spectrum(run);
    }

    where(run, trouble = "") {
      const { panels: p, theme, state } = this;
      const { layers, columns, of } = hr.layersOf(run);
      const has = layers.length > 0 && columns.length > 0;
      p.layers.show(has ? hr.layersChart(run, state, theme) : trouble || "Layers were not measured: HessianRankMonitor(layers=True) does.", has ? `rank of its own block / ${of}` : "");
      p.parts.show(hr.hasParts(run) ? hr.partsChart(run, state, theme, LOWER) : "The total rank only: the parts were not measured.");
      p.panels.node.hidden = !has;
      if (has) {
        const chart = hr.panelsChart(run, state, theme, p.panels.node.clientWidth || 1200);
        p.panels.show(chart, chart.hidden ? `the ${layers.length - chart.hidden} that moved most, of ${layers.length}` : "");
      }
      this.parts.flat.textContent = hr.flatWords(run);
      const bounds = [["bound", "Bound of the linear surrogate, layer by layer"], ["batch_bound", "Bound on these data, layer by layer"]];
      this.parts.bounds.replaceChildren(...bounds.filter(([key]) => run.about && run.about[key]).map(([key, title]) =>
        el("details", { open: this.report && key === "bound" }, el("summary", null, title), hr.boundTable(run.about[key]))));
    }

    across() {
      const { state, theme } = this;
      const choices = hr.choices(this.runs);
      if (!choices.some(([key]) => key === state.against) && choices.length) state.against = choices[0][0];
      this.parts.axis.replaceChildren(hr.select("against", choices, state.against, (key) => { state.against = key; this.across(); }));
      this.panels.across.show(hr.acrossChart(this.visible(), state, theme, LOWER));
      const resort = (i) => { state.sort = [i, state.sort[0] === i ? !state.sort[1] : i > 0]; this.across(); };
      this.parts.summary.replaceChildren(hr.summaryTable(this.runs, state, theme, resort));
    }

    about(run) {
      this.parts.about.replaceChildren(hr.about(run, this.report));
    }
  }

  /** Fill the report: everything it shows is in the page itself, compressed. */
  const showPage = async (root, data) => {
    const bytes = Uint8Array.from(atob(data.textContent), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const payload = await new Response(plain).json();
    const view = new View(root, async (run) => ({ about: run.about, details: run.details || [] }), true);
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const follow = () => { view.setDark(dark.matches); document.documentElement.dataset.theme = root.dataset.theme; };
    follow();
    dark.addEventListener("change", follow);
    if (window.Plotly) view.update(payload);
    else view.fail("The drawing library could not be loaded from the address that this page names.");
    hr.view = view;
  };

  Object.assign(hr, { View, showPage });
})((window.hessrank = window.hessrank || {}));
