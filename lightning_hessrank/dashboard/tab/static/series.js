// What the records of a run say: counts at a tolerance, ratios, words.
(function (hr) {
  "use strict";
  const { known, number, percent, scientific } = hr;

  /** The tolerances that the slider stops at; "own" is that of each run's headline rank. */
  const TOLERANCES = ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "machine", "own"];

  const last = (run) => {
    const found = run.records.filter((r) => known(r.rank));
    return found.length ? found[found.length - 1] : run.records[run.records.length - 1];
  };
  const first = (run) => run.records.find((r) => known(r.rank)) || run.records[0];

  /** Give runs an identity, a short name, a colour and a symbol that stay as runs come and go. */
  const prepare = (runs, before = new Map()) => {
    const found = runs.filter((run) => run.records.length);
    const several = new Set(found.map((run) => run.name)).size > 1;
    const label = (run) => (several ? `${run.run} · ${run.name}` : run.run);
    const labels = hr.shortNames(found.map(label));
    found.forEach((run, i) => {
      run.id = `${run.run}\n${run.name}`;
      if (!before.has(run.id)) before.set(run.id, before.size);
      run.place = before.get(run.id);
      run.label = labels[i] === "." ? "run" : labels[i];
      run.exact = !last(run).method || last(run).method !== "lanczos";
    });
    return found;
  };

  const colour = (run, theme) => theme.runs[run.place % theme.runs.length];
  const symbol = (run) =>
    hr.SYMBOLS[Math.floor(run.place / 10) % hr.SYMBOLS.length] + (run.exact ? "" : "-open");

  /** Count beyond a tolerance, or null where the method does not know it. */
  const count = (record, tolerance) => {
    const value = tolerance === "own" ? record.rank : (record.counts || {})[tolerance];
    return known(value) ? value : null;
  };

  /** What a count is divided by: 1, the bound, or the number of parameters. */
  const unit = (record, as) => {
    const value = as === "bound" ? record.bound : as === "parameters" ? record.num_parameters : 1;
    return known(value) && value > 0 ? value : null;
  };

  const scaled = (value, record, as) => {
    const by = unit(record, as);
    return value === null || by === null ? null : value / by;
  };

  /** Lower and upper end: of the 95 % interval at the run's own tolerance, of ranges elsewhere. */
  const interval = (record, tolerance) => {
    if (tolerance === "own" && known(record.rank_lower) && known(record.rank_upper))
      return [record.rank_lower, record.rank_upper];
    const range = (record.ranges || {})[tolerance];
    return Array.isArray(range) && range.every(known) && range[1] > range[0] ? range : null;
  };

  const axisValue = (record, x) => {
    if (x === "epoch") return known(record.epoch) ? record.epoch : null;
    return record.step;
  };

  const worth = (record) => {
    if (record.bound_is_theorem === undefined) return "";
    return record.bound_is_theorem ? "theorem" : "reference line";
  };

  /** Rose, fell, or stayed, from first to last. */
  const change = (run, tolerance) => {
    const values = run.records.map((r) => count(r, tolerance)).filter((x) => x !== null);
    if (!values.length)
      return { text: tolerance === "own" ? "no rank was found" : "not known at this tolerance", from: null, to: null };
    const [from, to] = [values[0], values[values.length - 1]];
    if (values.length === 1) return { from, to, arrow: "•", word: "measured once" };
    // Within the interval of an estimate nothing is known to have moved.
    const range = interval(last(run), tolerance);
    const still = range ? range[0] <= from && from <= range[1] : from === to;
    if (still) return { from, to, arrow: from === to ? "=" : "≈", word: range ? "no clear change" : "unchanged" };
    return to > from ? { from, to, arrow: "▲", word: "rose" } : { from, to, arrow: "▼", word: "fell" };
  };

  /** How the last count compares with the bound, in one phrase. */
  const comparison = (run, tolerance) => {
    const record = last(run);
    const value = count(record, tolerance);
    if (!known(record.bound)) return "no bound for this network";
    const name = `bound ${number(record.bound)}${worth(record) ? ` (${worth(record)})` : ""}`;
    if (value === null) return name;
    if (value === record.bound) return `exactly at the ${name}`;
    const share = percent(value / record.bound);
    return value < record.bound ? `${share} of the ${name}` : `above the ${name}, at ${share}`;
  };

  /** Whether the number is exact, and how it was found. */
  const exactness = (run, tolerance = "own") => {
    const record = last(run);
    if (run.exact) return `exact count${record.method && record.method !== "exact" ? `, ${record.method}` : ""}`;
    const range = interval(record, tolerance);
    if (record.std_error === 0) return "counted by lanczos, all converged";
    return range && range[1] > range[0]
      ? `estimate, between ${number(range[0])} and ${number(range[1])} (95 %)`
      : "estimate (lanczos)";
  };

  /** What the gap at the cut means. */
  const gapWords = (record) => {
    const gap = record.gap;
    if (gap === "inf") return "nothing left below the cut";
    if (!known(gap)) return "not known";
    const size = `${scientific(gap)}×`;
    if (gap >= 1e3) return `clear cut (${size})`;
    if (gap >= 10) return `fairly clear (${size})`;
    return `no clear cut (${size}): another tolerance, another number`;
  };

  const toleranceWords = (record) =>
    known(record.rtol) ? `${scientific(record.rtol)} · max |λ|` : "–";

  /** Name of the runs that differ in a number at the end only: seeds, folds, versions. */
  const group = (run) =>
    run.label.replace(/[\s_/=.-]*(seed|run|fold|version|v|rep|trial)?[\s_=.-]*\d+$/i, "") || run.label;

  Object.assign(hr, {
    TOLERANCES, prepare, first, last, colour, symbol, count, unit, scaled, interval, axisValue,
    worth, change, comparison, exactness, gapWords, toleranceWords, group,
  });
})((window.hessrank = window.hessrank || {}));
