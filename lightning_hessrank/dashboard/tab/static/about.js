// How to read the page, what it was measured with, and how to cite it.
(function (hr) {
  "use strict";
  const { el } = hr;

  const GUIDE = [
    ["What is counted.", "The eigenvalues, beyond a tolerance, of the Hessian of the mean loss over the reference data, with respect to the trainable parameters. The same data, mode, tolerance and method at every step of a run."],
    ["Bound.", "How large the rank of the network's linear surrogate can be. For linear activations that is a theorem: the rank cannot exceed it. For others it is a reference line, and the rank may lie above."],
    ["Exact or estimated.", "Filled markers are exact counts. Open markers and dotted lines are estimates, with a 95 % interval as a band."],
    ["Gap.", "The last eigenvalue counted over the next one. Large: the count does not hang on the tolerance. Near 1: read the counts as a curve over the tolerance (move the slider), not as one number."],
  ];
  const CITE = [
    "S. P. Singh, T. Hofmann, B. Schölkopf: The Hessian perspective into the Nature of Convolutional Neural Networks. ICML 2023, arXiv:2305.09088.",
    "S. P. Singh, G. Bachmann, T. Hofmann: Analytic Insights into Structure and Rank of Neural Network Hessian Maps. NeurIPS 2021, arXiv:2106.16225.",
  ];

  const about = (run, open) => {
    const versions = Object.entries((run.about && run.about.versions) || {}).map(([k, v]) => `${k} ${v}`).join(", ");
    return el("details", { open }, el("summary", null, "How to read this, and how to cite it"),
      GUIDE.map(([lead, text]) => el("p", null, el("b", null, `${lead} `), text)),
      versions ? el("p", null, el("b", null, "Measured with "), `${versions} (${run.label}).`) : "",
      el("p", null, el("b", null, "Cite")), el("ul", null, CITE.map((text) => el("li", null, text))));
  };

  Object.assign(hr, { about });
})((window.hessrank = window.hessrank || {}));
