"""What a time budget buys: which method, in which precision, on how many samples, decided once.

Exact methods come first, then products in float32, then fewer products (which tell the counts at
fewer tolerances), then fewer samples. What anything costs is measured on a few samples, as the best
of several short timings, and extrapolated: small networks are exact whatever the clock says.

Two designs were weighed. (a) Begin with the best method and stop when time is up: what a number
means then depends on how busy the machine was. (b) Decide from measured costs before anything
expensive starts, say it, and keep to it for the run; the clock is a safety net only. (b) is used:
all measurements of a run mean the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_hessrank.estimators.choose import (
    choose_method,
    duration,
    reorthogonalising,
)
from lightning_hessrank.estimators.dense import dense_bytes
from lightning_hessrank.estimators.lanczos import DEFAULT_PRODUCTS, default_probes
from lightning_hessrank.estimators.sketch import OVERSAMPLING
from lightning_hessrank.hessian.differences import DifferenceCurvature
from lightning_hessrank.hessian.parts import LossCurvature
from lightning_hessrank.results import Method, Part, RankBound
from lightning_hessrank.subject.subject import Subject

#: Parameters up to which the dense method is taken whatever the clock says.
ALWAYS_DENSE = 3000
#: Samples that costs are measured on.
PROBE_SAMPLES = 8
#: Shares of the budget that the exact methods, and an estimate of the total, may take.
EXACT_SHARE, TOTAL_SHARE = 0.7, 0.4
#: What every measurement does besides: evaluations of all samples, and products on some; and the
#: share of the budget that is left for the rest in any case.
EVALUATIONS, LOOKS, LEAST_LEFT = 2, 10, 0.5
#: Products that an estimate should have before samples are given up for more of them, and samples
#: that are not given up for so many, but for the fewer products of the next line: with too few of
#: the first no eigenvalue is known, with too few of the second it is that of another problem.
ENOUGH_PRODUCTS = 64
TRADE = ((ENOUGH_PRODUCTS, 32), (32, 8), (16, 1))
#: float32 is taken where it is faster by this factor, and no finer tolerance is asked for.
WORTH, SINGLE_RTOL = 1.5, 1e-4

Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class Plan:
    """What is measured in a run, and how."""

    method: Method
    precision: Precision = "float64"
    """Of the products that estimates are made of."""
    num_samples: int | None = None
    """Of the reference data; ``None``: all."""
    max_products: int = DEFAULT_PRODUCTS
    """Of an estimate of the total; the functional part gets half of them."""
    seconds: float = 0.0
    """Expected for one measurement."""
    sentence: str = ""
    """For the log."""
    headline: float | None = None
    """Relative tolerance of the rank, once an estimate has resolved one."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.float32 if self.precision == "float32" else torch.float64

    def products(self, part: Part) -> int:
        """Most products that an estimate of a part may take."""
        return self.max_products if part == "total" else max(1, self.max_products // 2)

    def to_dict(self) -> dict[str, Any]:
        """Return builtin types only, as a checkpoint can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Plan:
        """Inverse of :meth:`to_dict`."""
        return cls(**state)


def make_plan(
    subject: Subject,
    *,
    max_seconds: float,
    memory: int,
    rtol: float | None = None,
    bound: RankBound | None = None,
    max_rank: int | None = None,
) -> Plan:
    """Decide what a budget buys.

    Args:
        subject: what is to be measured, all samples of it.
        max_seconds: wall time of one measurement, everything included.
        memory: bytes that it may take.
        rtol: tolerance that is asked for; ``None``: the method's own.
        bound: on the rank of the total; a theorem makes a sketch possible.
        max_rank: the same from the caller.
    """
    p = subject.num_parameters
    if p <= ALWAYS_DENSE and dense_bytes(p) <= memory:
        return Plan("dense", sentence=f"dense: exact, all eigenvalues of {p:,} parameters")
    limit = bound.total if bound is not None and bound.is_theorem else max_rank
    double = Cost.measured(subject, memory)
    looks = EVALUATIONS * subject.seconds + LOOKS * double.seconds(PROBE_SAMPLES)
    max_seconds = max(max_seconds - looks, LEAST_LEFT * max_seconds)
    exact = _exact(
        subject, double, EXACT_SHARE * max_seconds, memory=memory, rtol=rtol, limit=limit
    )
    return exact or _estimate(subject, double, max_seconds, memory, rtol)


@dataclass(frozen=True)
class Cost:
    """What a product costs, as a function of the number of samples."""

    dim: int
    constant: float
    """Seconds, whatever the samples."""
    each: float
    """Seconds a sample."""
    bytes_each: float
    """Bytes that the graphs of one sample take."""
    samples: int
    """In all."""
    sweep: float
    """Seconds that making a basis orthonormal takes, over the square of its size."""
    least: int = 1
    """Fewest samples that can be taken: batches that cannot be cut are whole."""

    @classmethod
    def measured(cls, subject: Subject, memory: int) -> Cost:
        """Measure on few samples, and on some more where that is cheap."""
        few = subject.first(PROBE_SAMPLES)
        seconds, held, sweep = _product(few, memory)
        more = subject.first(4 * PROBE_SAMPLES)
        samples = few.num_samples
        if seconds < 0.25 and more.num_samples > samples:
            longer, held, _ = _product(more, memory)
            each = max(0.0, longer - seconds) / (more.num_samples - samples)
            samples = more.num_samples
        else:
            longer, each = seconds, seconds / samples
        constant = max(0.0, longer - each * samples)
        return cls(
            subject.num_parameters,
            constant,
            each,
            held / samples,
            subject.num_samples,
            sweep,
            subject.least,
        )

    def seconds(self, samples: int) -> float:
        """Of one product."""
        return self.constant + self.each * samples

    def estimate(self, products: int, samples: int) -> float:
        """Seconds of an estimate with so many products, their reorthogonalisation included."""
        return products * self.seconds(samples) + self.sweep * products**2

    def products(self, samples: int, seconds: float, memory: int) -> int:
        """How many products of an estimate fit into some time and memory."""
        p = self.dim
        low, high = 1, max(1, min(DEFAULT_PRODUCTS, p, int(memory / (8 * p)) - 16))
        while low < high:
            m = (low + high + 1) // 2
            low, high = (m, high) if self.estimate(m, samples) <= seconds else (low, m - 1)
        return low


#: Cubes of a dimension whose eigenvalues take a second: an optimistic figure, made sure of later.
CUBES = 3e10


def _product(subject: Subject, memory: int) -> tuple[float, int, float]:
    """Best of some timings of one product, bytes of the graphs, and :attr:`Cost.sweep`."""
    curvature = _curvature(subject, memory)
    operator = curvature.operator()
    k = min(operator.block_size, operator.dim, 8)
    vectors = torch.ones(operator.dim, k, dtype=operator.dtype, device=operator.device)
    best, spent = float("inf"), 0.0
    for _ in range(4):
        taken = _timed(lambda: operator.matmat(vectors), operator.device)
        best, spent = min(best, taken / k), spent + taken
        if spent > 1.0:
            break
    size = min(100, operator.dim)
    sweep = reorthogonalising(operator, size, default_probes(operator)) / size**2
    return best, 4 * curvature.term_bytes, sweep


def _curvature(subject: Subject, memory: int) -> LossCurvature | DifferenceCurvature:
    """Evaluate a subject, as it will be measured."""
    if subject.once_only is not None:
        return DifferenceCurvature(subject.loss_function())
    return LossCurvature(subject.loss_function(), max_bytes=memory)


def _timed(work: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _exact(
    subject: Subject,
    cost: Cost,
    seconds: float,
    *,
    memory: int,
    rtol: float | None,
    limit: int | None,
) -> Plan | None:
    """Plan an exact method for all parts, if one is affordable."""
    p, product = cost.dim, cost.seconds(cost.samples)
    held = cost.bytes_each * cost.samples
    dense = (p / 8 if subject.once_only is None else p) * product + 3 * p**3 / CUBES
    sketch = float("inf") if limit is None else 3 * (limit + OVERSAMPLING) * product
    fits = dense_bytes(p) <= memory and dense <= seconds
    if held > memory or not (fits or sketch <= seconds):
        return None
    operator = _curvature(subject, memory).operator()
    chosen = choose_method(
        operator, max_rank=limit, rtol=rtol, memory_limit=memory, patience=seconds / 2
    )
    if chosen.method == "lanczos":
        return None
    return Plan(chosen.method, seconds=2 * chosen.seconds, sentence=chosen.reason)


def _estimate(
    subject: Subject, double: Cost, max_seconds: float, memory: int, rtol: float | None
) -> Plan:
    """Plan an estimate of the total and the functional part."""
    share = TOTAL_SHARE * max_seconds
    cost, precision = double, "float64"
    wanted = double.products(_fitting(double, memory), share, memory)
    coarse = subject.once_only is None and (rtol is None or rtol >= SINGLE_RTOL)
    if wanted < DEFAULT_PRODUCTS and coarse:
        single = Cost.measured(subject.in_precision(torch.float32), memory)
        samples = _fitting(double, memory)
        if double.seconds(samples) > WORTH * single.seconds(samples):
            cost, precision = single, "float32"
    samples = _fitting(cost, memory)
    products = cost.products(samples, share, memory)
    for enough, fewest in TRADE:
        least = max(fewest, cost.least)
        while products < min(enough, cost.dim) and samples > least:
            samples = max(least, samples * 2 // 3)
            products = cost.products(samples, share, memory)
    everything = samples >= cost.samples
    seconds = cost.estimate(products, samples) + cost.estimate(products // 2, samples)
    on = "all" if everything else f"{samples} of"
    sentence = (
        f"lanczos: at most {products:,} products ({precision}) for the total and half as many for "
        f"the functional part, the outer part exactly where it has few rows; on {on} "
        f"{cost.samples:,} samples, counts at tolerances from 1e-1 down to what these resolve, "
        f"about {duration(seconds)} ({cost.dim:,} parameters, {duration(cost.seconds(samples))} a "
        f"product)"
    )
    return Plan(
        "lanczos",
        "float32" if precision == "float32" else "float64",
        None if everything else samples,
        products,
        seconds,
        sentence,
    )


def _fitting(cost: Cost, memory: int) -> int:
    """How many samples' graphs fit into memory, beside a basis."""
    return max(cost.least, min(cost.samples, int(memory / 2 / max(cost.bytes_each, 1.0))))
