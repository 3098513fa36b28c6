"""What the numbers mean, in words, for TensorBoard's Text page (Markdown, but no maths or HTML)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_hessrank.results import LIVE, LayerRank, RankBound, holds_for, validity
from lightning_hessrank.text import Table

_GUIDE = """\
### How to read the rank of the loss Hessian

**What is measured.** The Hessian of the mean loss over the reference data, with respect to the \
trainable parameters, at the live weights. Its *numerical rank* is the number of eigenvalues \
beyond a tolerance, given relative to the largest |eigenvalue|. The same data, tolerance \
and method at every step of the run.

| tag | meaning |
|---|---|
| `{name}/rank` | the exact count at the run's tolerance, as a rule machine precision |
| `{name}/rank_outer`, `rank_functional` | ranks of the two parts whose sum is the Hessian \
(but for terms that pass by the outputs, as a weight penalty): \
outer-product (generalised Gauss-Newton) and functional (the network's curvature times residuals) |
| `{name}-tolerance/rank_1e-1` … `rank_1e-6` | counts at coarser tolerances: the large eigenvalues |
| `{name}-estimate/rank`, `rank_lower`, `rank_upper` | a stochastic estimate and its 95 % \
interval; it never stands in for the exact rank |
| `{name}-bound/rank` | the bound that the architecture implies for its linear surrogate |
| `{name}/batch_bound` | a bound for the live, nonlinear network on these very data |
| `{name}-spectrum/gap` | how clear the cut is: the last eigenvalue counted over the next one |
| `{name}-spectrum/decades_above_tolerance` | histogram of log10(abs(eigenvalue) / tolerance): \
what is right of zero is counted |
| `{name}-data/loss`, `samples` | loss on the reference data, and how many samples they are |
| `{name}-time/overhead` | share of the time since training began that went into measuring |

**Is the rank at the bound?** For linear activations the bound is a *theorem*: the rank cannot \
exceed it. For others it is a *reference line*: the rank at machine precision may well lie above, \
and close to the number of parameters; what then follows training are the counts at 1e-3 and 1e-1.

**Can the number be trusted?** A gap of several decades says that the count does not hang on the \
tolerance. A gap near 1 means that eigenvalues run through the tolerance without a break: read the \
counts as a curve over the tolerance, not as one number.

**Smoothing** draws values that were never measured: set it to 0."""


def guide(name: str) -> str:
    """Reading guide for the tags of one monitor."""
    return _GUIDE.format(name=name)


def layers_table(layers: Mapping[str, LayerRank]) -> str:
    """Markdown table of the rank of each layer's own block."""
    rows = [
        (
            f"`{name}`",
            "nan" if math.isnan(x.rank) else f"{x.rank:,.0f}",
            "" if x.bound is None else f"{x.bound:,}",
            f"{x.num_parameters:,}",
        )
        for name, x in layers.items()
    ]
    table = Table(("layer", "rank", "bound", "parameters"), rows).markdown()
    return f"### Rank of each layer's own block\n\n{table}"


def bound_table(bound: RankBound) -> str:
    """Markdown tables of a bound: totals with their validity, then layer by layer."""
    title = "Batch bound" if bound.kind in LIVE else "Linear bound"
    sums = [("**total**", bound.total), ("outer-product", bound.outer)]
    sums += [("functional", bound.functional), ("parameters", bound.num_parameters)]
    totals = [(name, f"{value:,}") for name, value in sums if value is not None]
    block = "Hessian" if bound.functional is None else "functional Hessian"
    layers = [(f"`{x.name}`", f"{x.num_parameters:,}", f"{x.functional:,}") for x in bound.layers]
    flat = [(x.element, f"{x.number:,}") for x in bound.explained]
    explained = Table(("flat directions are explained by", ""), flat).markdown()
    return "\n\n".join(
        [
            f"### {title}: {bound.total:,} ({validity(bound.is_theorem)})",
            f"{bound.kind}, {holds_for(bound)}: {bound.reason}",
            Table(("", "rank at most"), totals).markdown(),
            Table(("layer", "parameters", f"its columns of the {block}"), layers).markdown(),
            *([explained] if flat else []),
        ]
    )
