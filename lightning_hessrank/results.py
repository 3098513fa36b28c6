"""Frozen results: what was measured or bounded, how sure it is, and what it cost.

Data only: results know no figures. Whoever can draw one registers with :func:`figure_of`, and
nothing here depends on how. Until then a deputy stands there, which finds the package's own figures
when the first is drawn: ``result.plot()`` works wherever a result comes from, a pickle for one.
"""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING, Any, Literal

from lightning_hessrank.notebook import shown
from lightning_hessrank.spectrum import Measured, Spectrum
from lightning_hessrank.text import Table
from lightning_hessrank.tolerance import check_rtol, machine_rtol, numerical_rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

Part = Literal["total", "outer", "functional"]
Method = Literal["dense", "sketch", "lanczos"] | str
"""Name of an estimator: these, and what :func:`lightning_hessrank.estimators.estimator` added."""
Products = Literal["autograd", "differences"]
BoundKind = Literal["closed-form", "generic", "patch", "batch", "symmetry", "affine"]

#: What draws results, unless something else has registered.
FIGURES = f"{__name__.rpartition('.')[0]}.dashboard.figures"

#: Bounds of a network at its weights, on given data.
LIVE = frozenset({"batch", "symmetry", "affine"})
PARTS: tuple[Part, ...] = ("total", "outer", "functional")


class BoundNotAvailableError(ValueError):
    """No bound can be given for this network; the message names the layer and the reason."""


class NonFiniteError(FloatingPointError):
    """The loss, its gradient, its Hessian or what it is made of is not finite; it says which."""


@singledispatch
def figure_of(result: object, *further: Any) -> Figure:
    """Draw a result; ``figure_of.register(Type, function)`` says how those of a type are drawn.

    Raises:
        TypeError: nothing is registered that draws results of this type.
    """
    raise TypeError(f"there is no figure of a {type(result).__name__}")


@dataclass(frozen=True, eq=False)
class RankEstimate:
    """Numerical rank of a loss Hessian, or of one of its parts.

    The rank is the number of eigenvalues beyond ``tolerance = rtol * max|λ|``; it means nothing
    without ``rtol`` and ``method``.

    Attributes:
        rank: ``int`` from dense and sketch, ``float`` from lanczos; ``nan`` where the loss or its
            Hessian was not finite.
        std_error: standard error over probes; 0.0 where the count is exact.
        rtol: relative cut-off.
        tolerance: absolute cut-off, in units of the Hessian's eigenvalues.
        gap: ``abs(λ_r) / abs(λ_{r+1})`` at the cut; ``inf`` at full rank; ``None`` where unknown.
        method: name of the estimator.
        num_parameters: rows of the Hessian: trainable parameters.
        num_products: Hessian-vector products spent; for dense the number of columns, however they
            were made.
        seconds: wall time spent.
        part: ``"total"`` (default), ``"outer"`` or ``"functional"``.
        eigenvalues: shape ``(num_parameters,)``, float64, ascending (dense), else ``None``.
        counts: relative tolerance -> count, at the tolerances that the method resolved.
        count_errors: relative tolerance -> standard error of the count; empty where all counts are
            exact.
        products: ``"autograd"``, or ``"differences"`` of gradients where an operation has no
            second derivative.
        resolution: smallest relative tolerance at which the error of such products allows a count.
        num_probes: independent probes behind ``std_error`` (lanczos), else ``None``.
        ranges: relative tolerance -> (lower, upper) count, at tolerances where a count is not
            exact; see :meth:`range_at`.
        largest: largest eigenvalue; ``None`` where unknown.
        smallest: smallest (most negative) eigenvalue; ``None`` where unknown.
        trace: sum of the eigenvalues; ``None`` where unknown.
        frobenius_norm: ``‖H‖_F``; ``None`` where unknown.
        standard_errors: name of one of the four above -> its standard error; empty where they are
            exact.
        quadrature: what an estimate knows of the spectrum (lanczos), else ``None``.
        doubt: what speaks against a rank that looks clear-cut (a badly scaled Hessian); empty
            where nothing does.

    Example:
        >>> import torch
        >>> from lightning_hessrank import hessian_rank
        >>> inputs, targets = torch.eye(3), torch.zeros(3, 2)
        >>> found = hessian_rank(torch.nn.Linear(3, 2), "mse", (inputs, targets), method="dense")
        >>> found.rank, found.num_parameters, found.method
        (6, 8, 'dense')
        >>> found.rank_at(0.5)
        2
    """

    rank: int | float
    std_error: float
    rtol: float
    tolerance: float
    gap: float | None
    method: Method
    num_parameters: int
    num_products: int
    seconds: float
    part: Part = "total"
    eigenvalues: Tensor | None = field(default=None, repr=False)
    counts: Mapping[float, float] = field(default_factory=dict, repr=False)
    count_errors: Mapping[float, float] = field(default_factory=dict, repr=False)
    products: Products = "autograd"
    resolution: float = 0.0
    num_probes: int | None = None
    ranges: Mapping[float, tuple[int, int]] = field(default_factory=dict, repr=False)
    largest: float | None = None
    smallest: float | None = None
    trace: float | None = None
    frobenius_norm: float | None = None
    standard_errors: Mapping[str, float] = field(default_factory=dict, repr=False)
    quadrature: Spectrum | None = field(default=None, repr=False)
    doubt: str = field(default="", repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the rank, within the range that it certainly lies in.

        Student's t over the probes, or the normal quantile where their number is not known; of
        width zero where the count is exact, nan where the rank is.
        """
        return self._within(self.rank, self.std_error, self.rtol)

    def interval_at(self, rtol: float) -> tuple[float, float]:
        """What is known of the count at one of the tolerances of ``counts`` or ``ranges``.

        The 95 % interval of an estimate, else the range that the count certainly lies in.
        """
        if rtol in self.counts:
            return self._within(self.counts[rtol], self.count_errors.get(rtol, 0.0), rtol)
        low, high = self.range_at(rtol)
        return float(low), float(high)

    def _within(self, count: float, std_error: float, rtol: float) -> tuple[float, float]:
        if math.isnan(count) or not std_error:
            return float(count), float(count)
        least, most = self.ranges.get(rtol, (0, self.num_parameters))
        margin = t_quantile(self.num_probes) * std_error
        low = max(count - margin, float(least))
        return low, max(min(count + margin, float(most)), low)

    def effective_dimension(self, alpha: float) -> Measured:
        """Return ``Σ |λ| / (|λ| + α)``: see :mod:`lightning_hessrank.spectrum`, as for the others.

        Each is a ``float`` with its standard error as ``std_error``.

        Raises:
            ValueError: ``alpha`` is not positive, or the method cannot tell.
        """
        return self._spectrum.effective_dimension(alpha)

    @property
    def entropy_rank(self) -> Measured:
        """``exp(-Σ q log q)``; raises ``ValueError`` where the method cannot tell."""
        return self._spectrum.entropy_rank()

    @property
    def participation_ratio(self) -> Measured:
        """``(Σ|λ|)² / Σλ²``; raises ``ValueError`` where the method cannot tell."""
        return self._spectrum.participation_ratio()

    @property
    def stable_rank(self) -> Measured:
        """``Σλ² / max|λ|²``; raises ``ValueError`` where the method cannot tell."""
        return self._spectrum.stable_rank()

    def count_beyond(self, threshold: float) -> Measured:
        """Return the number of eigenvalues with ``|λ| > threshold``, in their own units.

        Raises:
            ValueError: ``threshold`` is negative, or the method cannot know the count there.
        """
        if not threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        if self.eigenvalues is not None:
            return Measured(int((self.eigenvalues.abs() > threshold).sum()))
        largest = max(abs(self.largest or 0.0), abs(self.smallest or 0.0))
        if not largest:
            raise ValueError(f"the {self.method} method does not know the largest eigenvalue")
        if threshold >= largest:
            return Measured(0)
        rtol = threshold / largest
        if self.quadrature is not None:
            return self.quadrature.count(threshold)
        return Measured(self.rank_at(rtol))

    def measures(self, alpha: float | None = None) -> dict[str, Measured]:
        """Return all that can be told: extremes, trace, norm, and smooth companions of the rank.

        Args:
            alpha: of the effective dimension; ``None``: leave that out.
        """
        found = {}
        fields = {"lambda_max": "largest", "lambda_min": "smallest", "trace": "trace"}
        for name, own in {**fields, "frobenius_norm": "frobenius_norm"}.items():
            value = getattr(self, own)
            if value is not None:
                found[name] = Measured(value, self.standard_errors.get(own, 0.0))
        smooth: dict[str, Callable[[], Measured]] = {
            "stable_rank": lambda: self.stable_rank,
            "entropy_rank": lambda: self.entropy_rank,
            "participation_ratio": lambda: self.participation_ratio,
        }
        if alpha:
            smooth["effective_dimension"] = lambda: self.effective_dimension(alpha)
        for name, get in smooth.items():
            with suppress(ValueError):
                found[name] = get()
        return found

    @property
    def _spectrum(self) -> Spectrum:
        if self.eigenvalues is not None:
            return Spectrum.of(self.eigenvalues)
        if self.quadrature is None:
            raise ValueError(
                f"the {self.method} method knows no spectrum; use method='dense' or 'lanczos'"
            )
        return self.quadrature

    def plot(self, bound: RankBound | None = None) -> Figure:
        """Draw sorted |λ| (or the counts, where there are no eigenvalues), tolerance and rank.

        Args:
            bound: drawn beside the rank, if given.

        Returns:
            A ``matplotlib.figure.Figure`` that pyplot does not know, so nothing needs closing.
        """
        return shown(figure_of(self, bound))

    def _repr_html_(self) -> str:
        """Show rank, tolerance, method and cost in a notebook."""
        error = f" ± {self.std_error:.2g}" if self.std_error else ""
        rank = f"{self.rank:.6g}" if isinstance(self.rank, float) else f"{self.rank:,}"
        rows = [
            (f"rank ({self.part})", f"{rank}{error} of {self.num_parameters:,}"),
            ("beyond", f"{self.rtol:.2g} max|λ| = {self.tolerance:.2g}"),
            ("gap there", "unknown" if self.gap is None else f"{self.gap:.2g}"),
            ("method", f"{self.method}, {self.num_products:,} products, {self.seconds:.2g} s"),
            *((f"beyond {t:.0e} max|λ|", f"{n:,.6g}") for t, n in self.counts.items()),
        ]
        return Table((), rows).html()

    def rank_at(self, rtol: float) -> int | float:
        """Return the count beyond another relative tolerance; nan where the rank is.

        Raises:
            ValueError: ``rtol`` is outside ``[0, 1)``, or the method cannot know the count there.
        """
        rtol = check_rtol(rtol)
        if math.isnan(self.rank):
            return math.nan
        if rtol < self.resolution:
            raise ValueError(
                "the products are differences of gradients, whose error allows counts at relative "
                f"tolerances from {self.resolution:.1g} on, not at {rtol:.3g}"
            )
        if self.eigenvalues is not None:
            return numerical_rank(self.eigenvalues, rtol).rank
        if math.isclose(rtol, self.rtol, rel_tol=1e-9, abs_tol=0.0):
            return self.rank
        for known, count in self.counts.items():
            if math.isclose(rtol, known, rel_tol=1e-9, abs_tol=0.0):
                return count
        resolved = ", ".join(f"{t:.3g}" for t in sorted({self.rtol, *self.counts}, reverse=True))
        raise ValueError(
            f"the {self.method} method knows the count at rtol {resolved} only, not at {rtol:.3g}; "
            "pass that rtol to the measurement, or use method='dense'"
        )

    def range_at(self, rtol: float) -> tuple[int, int]:
        """Return (lower, upper) count beyond a relative tolerance; equal where it is exact.

        The lower count is certain: a subspace never shows more eigenvalues beyond a cut than there
        are. The upper one is what its probes allow. ``(0, num_parameters)`` where nothing is known.

        Raises:
            ValueError: ``rtol`` is outside ``[0, 1)``.
        """
        rtol = check_rtol(rtol)
        for known, found in self.ranges.items():
            if math.isclose(rtol, known, rel_tol=1e-9, abs_tol=0.0):
                return found
        try:
            count = self.rank_at(rtol)
        except ValueError:
            return 0, self.num_parameters
        return (0, self.num_parameters) if math.isnan(count) else (int(count), int(count))


def nan_estimate(
    num_parameters: int,
    *,
    part: Part = "total",
    method: Literal["auto"] | Method = "dense",
    rtol: float | None = None,
) -> RankEstimate:
    """Return the estimate that stands for a measurement that was not finite."""
    return RankEstimate(
        rank=math.nan,
        std_error=0.0,
        rtol=machine_rtol(num_parameters) if rtol is None else rtol,
        tolerance=math.nan,
        gap=None,
        method="dense" if method == "auto" else method,
        num_parameters=num_parameters,
        num_products=0,
        seconds=0.0,
        part=part,
    )


#: 97.5 % points of Student's t with 1, 2, … degrees of freedom (any table of it, three decimals).
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_quantile(num_samples: int | None) -> float:
    """Half-width of a two-sided 95 % interval for a mean of samples, in standard errors.

    ``None``: the normal quantile 1.96; one sample: ``inf``, for it says nothing of the spread.
    Beyond 31 samples by the first two terms of the Cornish-Fisher expansion of Student's t
    (Abramowitz and Stegun 26.7.5), right to 1e-4 there.
    """
    z = 1.959964
    if num_samples is None:
        return z
    freedom = num_samples - 1
    if freedom < 1:
        return math.inf
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2


@dataclass(frozen=True)
class LayerBound:
    """Contribution of one layer to a rank bound."""

    name: str
    """Qualified name of the module that owns the layer's weight."""
    num_parameters: int
    """Trainable parameters of the layer."""
    functional: int
    """Bound on the rank of the layer's column block of the functional Hessian, or of the full
    Hessian where there is no split into parts."""
    outer: int | None = None
    """The same of the outer-product Hessian (batch bound)."""
    total: int | None = None
    """The same of the full Hessian (batch bound)."""


@dataclass(frozen=True)
class FlatDirections:
    """Directions along which an element of a network changes nothing, verified on the network."""

    element: str
    """In words, with the layers."""
    number: int
    """Dimension of their span beyond that of the elements before it."""


@dataclass(frozen=True)
class RankBound:
    """Upper bound on the rank of a loss Hessian and of its two parts.

    ``str(bound)`` is a table to read.

    Attributes:
        total: bound on the rank of the Hessian.
        outer: of its outer-product part; ``None`` where the bound has no such split (batch bound of
            an unknown output).
        functional: of its functional part; ``None`` likewise.
        layers: what each layer can add, with its name and its number of parameters.
        num_parameters: rows of the Hessian: trainable parameters.
        kind: how it was found: ``"closed-form"``, ``"generic"``, ``"patch"``, or at the
            weights, on given data, ``"batch"``, ``"symmetry"`` or ``"affine"``.
        is_theorem: whether it holds for this very network, not only for its linear surrogate.
        reason: one sentence: why it holds, or why it is a reference line only.
        input_rank: rank of the inputs that it holds for; the input dimension for any data;
            ``None`` (default) where it says nothing of inputs.
        num_samples: number of samples that it holds for; ``None`` (default): any number.
        outputs: outputs per sample that the loss can see: ``K``, or ``K - 1`` for softmax;
            ``None`` (default) where unknown.
        explained: null directions of the outer-product Hessian, by element (symmetries).
        sources: part -> kind of the bound that was the smallest, where several are joined.

    Example:
        >>> import torch
        >>> from lightning_hessrank import rank_bound
        >>> bound = rank_bound(torch.nn.Linear(10, 3), torch.zeros(1, 10), loss="cross_entropy")
        >>> bound.total, bound.num_parameters, bound.is_theorem
        (22, 33, True)
    """

    total: int
    outer: int | None
    functional: int | None
    layers: tuple[LayerBound, ...]
    num_parameters: int
    kind: BoundKind
    is_theorem: bool
    reason: str
    input_rank: int | None = None
    num_samples: int | None = None
    outputs: int | None = None
    explained: tuple[FlatDirections, ...] = ()
    sources: Mapping[str, BoundKind] = field(default_factory=dict)

    @property
    def flat_directions(self) -> int:
        """Number of flat directions that are explained."""
        return sum(x.number for x in self.explained)

    def plot(self) -> Figure:
        """Draw what each layer can add to the rank, beside its number of parameters.

        Returns:
            A ``matplotlib.figure.Figure`` that pyplot does not know, so nothing needs closing.
        """
        return shown(figure_of(self))

    def __str__(self) -> str:
        """Table of the layers and totals."""
        return format_bound(self)

    def _repr_html_(self) -> str:
        """Show the same in a notebook."""
        return f"<pre>{html.escape(format_bound(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return builtin types only, as a checkpoint can hold them."""
        return asdict(self) | {
            "layers": [asdict(layer) for layer in self.layers],
            "explained": [asdict(x) for x in self.explained],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> RankBound:
        """Inverse of :meth:`to_dict`."""
        layers = tuple(LayerBound(**layer) for layer in state["layers"])
        explained = tuple(FlatDirections(**x) for x in state.get("explained", ()))
        return cls(**{**state, "layers": layers, "explained": explained})


@dataclass(frozen=True)
class LayerRank:
    """Rank of one layer's diagonal block of the Hessian."""

    rank: int | float
    num_parameters: int
    bound: int | None = None
    """Linear bound on the rank of the layer's block, where there is one."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything that one measurement of a run found: what is logged, drawn and remembered."""

    step: int
    """``trainer.global_step``: optimiser steps done."""
    epoch: int
    total: RankEstimate
    outer: RankEstimate | None = None
    functional: RankEstimate | None = None
    bound: RankBound | None = None
    """Linear bound: of the linear surrogate on the reference data."""
    batch_bound: RankBound | None = None
    layers: Mapping[str, LayerRank] = field(default_factory=dict)
    block_norms: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """Frobenius norm of the Hessian's block between two layers, and its standard error."""
    loss: float = math.nan
    """Loss on the reference data, at the measured weights."""
    seconds: float = 0.0
    """Wall time of the whole measurement."""
    overhead: float = 0.0
    """Share of the wall time since the start of training that went into measuring, in [0, 1]."""
    skipped: int = 0
    """Measurements that the time budget has left out so far."""
    weight_decay: float | None = None
    """Of the optimiser, where there is one: ``α`` of the effective dimension."""
    gradient_descent_rate: float | None = None
    """Learning rate of the optimiser, where that is plain gradient descent."""
    num_samples: int | None = None
    """Of the reference data, on all processes together."""
    module_mode: str | None = None
    """``"eval"`` or ``"train"``."""
    warnings: tuple[str, ...] = ()
    """What was warned of since the measurement before."""

    def measures(self) -> dict[str, float]:
        """Smooth companions of the total rank; with gradient descent also its edge of stability.

        With learning rate ``η``, ``sharpness`` is ``λ_max η / 2`` (1 at the edge), and
        ``beyond_edge`` the number of ``|λ|`` beyond ``2 / η``.
        """
        found: dict[str, float] = dict(self.total.measures(self.weight_decay))
        rate = self.gradient_descent_rate
        if rate and self.total.largest is not None:
            found["sharpness"] = self.total.largest * rate / 2
            with suppress(ValueError):
                found["beyond_edge"] = self.total.count_beyond(2 / rate)
        return found

    @property
    def limited_by(self) -> str | None:
        """At which of its limits an exact rank stands; ``None`` where it is below all of them.

        A loss sees ``K'`` outputs of each of ``N`` samples, so that the outer-product Hessian has
        no more than ``N K'`` directions: the rank of a small batch is often that of the batch, and
        says nothing of the network.
        """
        total, bound, batch_bound = self.total, self.bound, self.batch_bound
        if total.std_error or math.isnan(total.rank):
            return None
        if total.rank == total.num_parameters:
            return "the number of parameters"
        if bound is not None and bound.is_theorem and total.rank == bound.total:
            return f"the bound {bound.total} (theorem)"
        samples, outputs = self.num_samples, None if bound is None else bound.outputs
        if self.outer is not None and samples is not None and outputs is not None:
            seen = samples * outputs
            if self.outer.rank == seen:
                text = f"{samples} samples × {outputs} outputs = {seen}"
                return f"the data, in its outer-product part: {text}"
        if batch_bound is not None and total.rank == batch_bound.total:
            return f"the batch bound {batch_bound.total}"
        return None

    def _ranges(self) -> dict[float, tuple[float, float]]:
        """What is known of each count, from the coarsest tolerance to the finest.

        No count is below one at a coarser tolerance, nor above a bound that is a theorem.
        """
        theorems = [x.total for x in (self.bound, self.batch_bound) if x and x.is_theorem]
        most = min([self.total.num_parameters, *theorems])
        found: dict[float, tuple[float, float]] = {}
        least = 0.0
        for rtol in sorted(self.total.ranges, reverse=True):
            low, high = self.total.interval_at(rtol)
            if not math.isnan(low):
                least = low = max(low, least)
                high = max(low, min(high, most))
            found[rtol] = low, high
        return found

    def record(self) -> dict[str, Any]:
        """Return the plain dict kept in ``monitor.history``: builtin types only."""
        total, bound = self.total, self.bound
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "rank": total.rank,
            "num_parameters": total.num_parameters,
            "method": total.method,
            "products": total.products,
            "rtol": total.rtol,
            "tolerance": total.tolerance,
            "counts": dict(total.counts),
            "gap": total.gap,
            "std_error": total.std_error,
            "loss": self.loss,
            "seconds": self.seconds,
            "overhead": self.overhead,
            "skipped": self.skipped,
        }
        optional = {
            "num_samples": self.num_samples,
            "module_mode": self.module_mode,
            "limited_by": self.limited_by,
        }
        record |= {key: value for key, value in optional.items() if value is not None}
        if self.warnings:
            record["warnings"] = list(self.warnings)
        if total.std_error:
            record["rank_lower"], record["rank_upper"] = total.interval
        if total.ranges:
            record["ranges"] = self._ranges()
        for name, estimate in (("outer", self.outer), ("functional", self.functional)):
            if estimate is not None:
                record[f"rank_{name}"] = estimate.rank
        if bound is not None:
            record["bound"] = bound.total
            record["bound_outer"] = bound.outer
            record["bound_functional"] = bound.functional
            record["bound_is_theorem"] = bound.is_theorem
            record["rank_over_bound"] = total.rank / bound.total if bound.total else math.nan
        if self.batch_bound is not None:
            record["batch_bound"] = self.batch_bound.total
            record["batch_bound_outer"] = self.batch_bound.outer
            record["batch_bound_functional"] = self.batch_bound.functional
            if self.batch_bound.explained and self.outer is not None:
                flat = total.num_parameters - self.outer.rank
                record["flat_directions"] = (self.batch_bound.flat_directions, flat)
        measures = self.measures()
        if measures:
            record["measures"] = {name: float(x) for name, x in measures.items()}
            errors = {name: getattr(x, "std_error", 0.0) for name, x in measures.items()}
            record["measures"] |= {f"{name}_std_error": x for name, x in errors.items() if x}
        if self.layers:
            record["layers"] = {
                name: {"rank": x.rank, "num_parameters": x.num_parameters, "bound": x.bound}
                for name, x in self.layers.items()
            }
        if self.block_norms:
            between: dict[str, dict[str, dict[str, float]]] = {}
            for (a, b), (norm, error) in self.block_norms.items():
                between.setdefault(a, {})[b] = {"norm": norm, "std_error": error}
            record["block_norms"] = between
        return record


def _first_figure(result: object, *further: Any) -> Figure:
    """Let the package's figures register, in the place of this, and draw the first."""
    importlib.import_module(FIGURES)
    return figure_of(result, *further)


for _type in (RankEstimate, RankBound):
    figure_of.register(_type, _first_figure)


def validity(is_theorem: bool) -> str:
    """Say in two words what a bound is worth for the network beside which it stands."""
    return "theorem" if is_theorem else "reference line"


def format_bound(bound: RankBound) -> str:
    """Lay out a bound as an aligned plain-text table."""
    title = f"Rank bound of the loss Hessian ({bound.kind}, {validity(bound.is_theorem)})"
    per_layer = "block of H" if bound.functional is None else "functional"
    layers = [(x.name, f"{x.num_parameters:,}", f"{x.functional:,}") for x in bound.layers]
    found = {"outer-product": bound.outer, "functional": bound.functional}
    found |= {"total": bound.total, "parameters": bound.num_parameters}
    sums = {name: value for name, value in found.items() if value is not None}
    rows = [(name, f"{value:,}") for name, value in sums.items()]
    totals = Table((), rows).plain(widths=(13, 11))
    capped = [
        f"{line}  {why}".rstrip()
        for line, why in zip(totals.split("\n"), _caps(bound, sums), strict=True)
    ]
    flat = Table(
        ("flat", "directions explained by"), [(f"{x.number:,}", x.element) for x in bound.explained]
    )
    return "\n".join(
        [
            *(title, holds_for(bound), ""),
            Table(("layer", "parameters", per_layer), layers).plain(ruled=True),
            *(*capped, ""),
            *([flat.plain(ruled=True), ""] if bound.explained else []),
            bound.reason,
        ]
    )


def _caps(bound: RankBound, sums: Mapping[str, int]) -> Iterator[str]:
    """Say of each sum of a bound which cap it stands at, if it is one that has a name."""
    parts = (bound.outer or 0) + (bound.functional or 0)
    data = None
    if bound.num_samples is not None and bound.outputs is not None:
        data = bound.num_samples * bound.outputs
    for name, value in sums.items():
        if name == "parameters":
            yield ""
        elif value == bound.num_parameters:
            yield "all parameters: no cap"
        elif name == "outer-product" and value == data:
            yield f"the data: {bound.num_samples:,} samples × {bound.outputs:,} outputs"
        elif name == "total" and value == parts:
            yield "outer-product + functional"
        elif name == "total" and value < max(bound.outer or 0, bound.functional or 0):
            yield "bounded as a whole, below the bounds of its parts"
        elif name == "total" and value < parts:
            yield "bounded as a whole, below the sum of its parts"
        else:
            yield ""


def holds_for(bound: RankBound) -> str:
    """Say in words for which data a bound holds."""
    facts = []
    if bound.input_rank is not None:
        facts.append(f"inputs of rank {bound.input_rank:,}")
    if bound.num_samples is not None:
        facts.append(f"{bound.num_samples:,} samples")
    elif bound.kind in LIVE:
        facts.append("the given batches")
    else:
        facts.append("any number of samples")
    if bound.outputs is not None:
        facts.append(f"{bound.outputs:,} effective outputs per sample")
    return "for " + ", ".join(facts)
