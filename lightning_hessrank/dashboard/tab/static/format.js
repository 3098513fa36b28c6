// Numbers and names as people read them.
(function (hr) {
  "use strict";

  const known = (x) => typeof x === "number" && Number.isFinite(x);

  const digitsOf = [0, 1].map((digits) => // made once: making one is slow
    new Intl.NumberFormat("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }));

  /** 1210 -> "1,210"; small fractions, of estimates, keep one digit. */
  const number = (x) => {
    if (!known(x)) return "–";
    return digitsOf[Number.isInteger(x) || Math.abs(x) >= 100 ? 0 : 1].format(x);
  };

  /** 2500000 -> "2.5M", for axes and narrow columns. */
  const short = (x) => {
    if (!known(x)) return "–";
    for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(x) >= unit * 10 || (unit > 1e3 && Math.abs(x) >= unit))
        return `${+(x / unit).toPrecision(3)}${letter}`;
    return number(x);
  };

  /** 2.66e-13 -> "2.7e-13", 0.0123 -> "0.012". */
  const scientific = (x) => {
    if (!known(x)) return "–";
    if (x === 0 || (Math.abs(x) >= 0.01 && Math.abs(x) < 1000)) return String(+x.toPrecision(2));
    return x.toExponential(1).replace(".0e", "e").replace("e+", "e");
  };

  /** Up to 999 % with two digits that matter: 0.928 -> "93 %". */
  const percent = (x) => {
    if (!known(x)) return "–";
    const value = 100 * x;
    const digits = value !== 0 && Math.abs(value) < 10 ? 1 : 0;
    // 99.6 % is not 100 %: what has reached the bound has reached it exactly.
    const text = value.toFixed(digits);
    return `${text === "100" && x !== 1 ? value.toFixed(value < 100 ? 1 : 2) : text}\u00a0%`;
  };

  const seconds = (x) => {
    if (!known(x)) return "–";
    if (x < 1) return `${Math.round(1000 * x)} ms`;
    return x < 120 ? `${+x.toPrecision(2)} s` : `${Math.round(x / 60)} min`;
  };

  /** What the drawing library would take for markup is text here. */
  const escape = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  /** Names without what all of them begin with, whole folders only; cut in the middle if long. */
  const shortNames = (names, length = 34) => {
    const parts = names.map((name) => name.split("/"));
    let same = 0;
    while (names.length > 1 && parts.every((p) => p.length > same + 1 && p[same] === parts[0][same]))
      same += 1;
    const cut = (text) =>
      text.length <= length ? text : `${text.slice(0, length / 3)}…${text.slice(-(2 * length) / 3)}`;
    return parts.map((p) => cut(p.slice(same).join("/")));
  };

  /** A table as a file of comma-separated values. */
  const csv = ({ columns, rows }) => {
    const cell = (x) => {
      const text = x === null || x === undefined ? "" : String(x);
      return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  };

  Object.assign(hr, { known, number, short, scientific, percent, seconds, escape, shortNames, csv });
})((window.hessrank = window.hessrank || {}));
