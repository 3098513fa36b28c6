"""The search for the top of a spectrum in Krylov subspaces, and what they tell of the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.estimators.krylov import BlockKrylov, Ritz
from lightning_hessrank.estimators.measures import Measures, measures_of_quadrature
from lightning_hessrank.estimators.probes import Probes
from lightning_hessrank.hessian.memory import memory_limit as default_memory_limit
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.tolerance import COUNT_TOLERANCES

#: Largest part of a count, and smallest number, that may be ambiguous before a count is refused.
RESOLUTION = 0.1
#: Share of the block of nodes next to the cut by which a quadrature is wrong, one standard error.
LOCAL_SHARE = 0.4
#: Residual of these nodes, in units of the cut, up to which they see it. Counts were right to their
#: errors up to 8, and wrong by a fifth and more from 18 on.
MAX_SPREAD = 6.0
#: A Ritz pair beyond the cut counts as an eigenvalue once its residual is below this share of its
#: distance from the cut, and
SAFETY = 0.1
#: this share of itself: a Ritz value that stands for several eigenvalues has a larger one.
CONVERGED = 1e-3


@dataclass(frozen=True)
class Count:
    """How many eigenvalues lie beyond a relative tolerance, as seen from a Krylov subspace."""

    value: float
    std_error: float
    """Over probes, and what the subspace cannot attribute to either side of the cut."""
    ambiguity: float
    """Eigenvalues that may lie on the other side of the cut than their Ritz values."""

    @property
    def resolved(self) -> bool:
        """Whether the subspace can tell the count."""
        return self.ambiguity <= max(1.0, RESOLUTION * self.value)


def basis_size(
    operator: SymmetricOperator, num_probes: int, max_products: int, memory_limit: int | None
) -> int:
    """How many basis vectors may be kept.

    Raises:
        MemoryError: fewer than four blocks of probes fit.
    """
    limit = default_memory_limit(operator.device) if memory_limit is None else memory_limit
    each = 8 * operator.rows.most  # a float64 basis, whatever the products are
    fits = limit // each - 4 * num_probes  # see basis_bytes
    if fits < min(4 * num_probes, operator.dim):
        raise MemoryError(
            f"lanczos keeps its basis in memory: {8 * num_probes} vectors of {each // 8:,} "
            f"numbers need {8 * num_probes * each / 2**30:.2g} GiB, but the limit is "
            f"{limit / 2**30:.2g} GiB; pass fewer num_probes or a larger memory_limit"
        )
    return min(operator.dim, max_products, fits)


def basis_bytes(operator: SymmetricOperator, size: int, num_probes: int) -> int:
    """Bytes of a float64 basis of so many vectors, the newest block and what is made of it."""
    return 8 * operator.rows.most * (size + 4 * num_probes)


class TopSearch:
    """Grows Krylov subspaces until the eigenvalues beyond a cut are known."""

    def __init__(
        self,
        operator: SymmetricOperator,
        probes: Probes,
        block: int,
        max_size: int,
        progress: Progress | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        self._operator = operator
        self._probes = probes
        self._block = min(block, operator.dim)
        self._max_size = max_size
        self._progress = progress
        self._deadline = math.inf if deadline is None else deadline
        self._drawn = 0
        self._locked: Tensor | None = None
        self._locked_values = torch.zeros(0, dtype=torch.float64, device=operator.device)
        self._ritz: Ritz | None = None
        self._missing = 0.0
        """Estimated number of copies of eigenvalues that there is no room for."""
        self.num_products = 0

    @property
    def largest(self) -> float:
        """Largest ``|λ|``."""
        values = torch.cat([self._locked_values, self._pairs.values])
        return float(values.abs().max()) if len(values) else 0.0

    @property
    def _pairs(self) -> Ritz:
        if self._ritz is None:
            raise RuntimeError("run the search before asking it")
        return self._ritz

    def run(self, rtol: float) -> bool:
        """Grow until the count at ``rtol`` is exact (``True``) or the subspace full (``False``).

        A subspace from ``b`` start vectors holds at most ``b`` copies of a repeated eigenvalue.
        Where that many are seen, all that was found is locked and the search is repeated outside.
        """
        while True:
            space = self._grow(rtol)
            exact = self._exact(rtol)
            pairs, cut = self._pairs, rtol * self.largest
            if not exact or not self._saturated(cut):
                return exact
            found = pairs.values.abs() > cut
            if len(self._locked_values) + int(found.sum()) > self._max_size:
                surplus = pairs.weights[:, found].sum() / self._block - found.sum()
                self._missing = max(float(surplus), float(self._block))
                return False
            vectors = space.vectors(pairs.coordinates[:, found])
            self._locked = (
                vectors if self._locked is None else torch.cat([self._locked, vectors], 1)
            )
            self._locked_values = torch.cat([self._locked_values, pairs.values[found]])

    def count(self, rtol: float) -> Count:
        """Count beyond ``rtol * max|λ|`` what has converged, and estimate the rest."""
        pairs, cut = self._pairs, rtol * self.largest
        beyond, unsure = self._sides(cut)
        # A tight cluster looks converged, but a Ritz value there may stand for many eigenvalues.
        estimated = beyond if self._saturated(cut) else beyond & unsure
        exact = int((self._locked_values.abs() > cut).sum()) + int((beyond & ~estimated).sum())
        if self._missing:
            return Count(exact + self._missing, self._missing, self._missing)
        if not bool((estimated | unsure).any()):
            return Count(float(exact), 0.0, 0.0)
        ambiguity = min(self._mass_across(cut, beyond, unsure), self._local_mass(cut, estimated))
        per_probe = pairs.weights[:, estimated].sum(dim=1)
        error = float(per_probe.std()) / math.sqrt(len(per_probe)) if len(per_probe) > 1 else 0.0
        return Count(exact + float(per_probe.mean()), math.hypot(error, ambiguity), ambiguity)

    def ranges(self, rtols: Sequence[float]) -> dict[float, tuple[int, int]]:
        """Lower and upper counts beyond some tolerances, ascending.

        Lower: by Cauchy's interlacing theorem no subspace has more Ritz values beyond a cut than
        the matrix has eigenvalues. Upper: the squares of the probes' components along the
        eigenvectors beyond a cut sum up to ``χ²`` with one degree of freedom for each of them and
        probe; the largest number that gives so small a sum with a probability of 1e-4.
        """
        found: dict[float, tuple[int, int]] = {}
        dim = ceiling = self._operator.dim
        for rtol in sorted(rtols):
            count = self.count(rtol)
            if not count.std_error and not self._missing:
                lower = upper = int(count.value)
            else:
                pairs, cut = self._pairs, rtol * self.largest
                safe = cut + float(pairs.residuals.min()) + rtol * self._error_of_largest
                values = torch.cat([self._locked_values, pairs.values]).abs()
                lower = int((values > safe).sum())
                upper = dim if self._missing else self._at_most(cut)
            ceiling = min(ceiling, max(upper, lower))  # there are no more beyond a larger cut
            found[rtol] = (lower, ceiling)
        return dict(reversed(found.items()))

    def measures(self) -> Measures:
        """Extreme eigenvalues, trace and Frobenius norm, with standard errors."""
        pairs = self._pairs
        exact = [t for t in COUNT_TOLERANCES if not self.count(t).std_error]
        cut = min(exact, default=1.0) * self.largest
        converged = (pairs.values.abs() > cut) & (not self._saturated(cut))
        rest = ~converged
        return measures_of_quadrature(
            torch.cat([self._locked_values, pairs.values[converged]]),
            pairs.values[rest],
            pairs.weights[:, rest],
            pairs.residuals[rest],
        )

    @property
    def _error_of_largest(self) -> float:
        """What the largest ``|Ritz value|`` may be wrong by, if it is not a locked one."""
        size = self._pairs.values.abs()
        return float(self._pairs.residuals[size.argmax()]) if len(size) else 0.0

    def _at_most(self, cut: float) -> int:
        """Largest number of eigenvalues beyond a cut that the probes allow."""
        pairs = self._pairs
        beyond, unsure = self._sides(cut)
        estimated = beyond if self._saturated(cut) else beyond & unsure
        exact = int((self._locked_values.abs() > cut).sum()) + int((beyond & ~estimated).sum())
        inside = pairs.weights[:, estimated].sum(dim=1)
        outside = (pairs.weights * self._across(cut))[:, ~beyond].sum(dim=1)
        total = float(((inside.sqrt() + outside.sqrt()) ** 2).sum())
        return exact + _most_degrees(total, len(inside), self._operator.dim - exact)

    def _mass_across(self, cut: float, beyond: Tensor, unsure: Tensor) -> float:
        """Eigenvalues that may lie across the cut from their Ritz values, at most."""
        mass = self._pairs.weights.mean(dim=0) * self._across(cut)
        return max(float(mass[beyond & unsure].sum()), float(mass[~beyond & unsure].sum()))

    def _local_mass(self, cut: float, estimated: Tensor) -> float:
        """What a quadrature with so many nodes may be wrong by, where it can see the cut at all.

        A quadrature places a cut to within about one block of nodes (for a single probe one node:
        the inequalities of Chebyshev, Markov and Stieltjes). Of what the block next to the cut
        stands for, errors were seen to be 0.1 to 0.7, mostly below 0.4 (``python -m
        tests.benchmarks.coverage``). Nodes that are spread much wider than the cut's distance from
        zero see no cut there.
        """
        pairs = self._pairs
        size, residuals = pairs.values[estimated].abs(), pairs.residuals[estimated]
        if not len(size):
            return math.inf
        next_to = size.argsort()[: self._block]
        weights = pairs.weights.mean(dim=0)[estimated][next_to]
        spread = float((weights * residuals[next_to]).sum() / weights.sum())
        return LOCAL_SHARE * float(weights.sum()) if spread <= MAX_SPREAD * cut else math.inf

    def _across(self, cut: float) -> Tensor:
        """Share of each Ritz vector that may lie on the other side of the cut, at most.

        A unit Ritz vector has spectral mean θ and variance residual²; by Cantelli's inequality at
        most ``r² / (r² + d²)`` of it lies across a cut at distance ``d``.
        """
        squares = self._pairs.residuals**2
        return squares / (squares + (self._pairs.values.abs() - cut) ** 2)

    def _exact(self, rtol: float) -> bool:
        return not bool(self._sides(rtol * self.largest)[1].any())

    def _sides(self, cut: float) -> tuple[Tensor, Tensor]:
        """Which Ritz values lie beyond the cut, and which of all may be on the wrong side."""
        pairs = self._pairs
        if self.largest == 0.0:
            nothing = torch.zeros_like(pairs.values, dtype=torch.bool)
            return nothing, nothing
        size = pairs.values.abs()
        beyond = size > cut
        distance = (size - cut).abs()
        converged = torch.minimum(SAFETY * distance, CONVERGED * size)
        return beyond, pairs.residuals >= torch.where(beyond, converged, distance)

    def _grow(self, rtol: float) -> BlockKrylov:
        start = self._probes.columns(self._drawn, self._drawn + self._block)
        self._drawn += self._block
        space = BlockKrylov(self._operator, start, self._max_size, self._locked)
        done, following = self.num_products, 2 * self._block
        began = time.perf_counter()
        while not space.exhausted:
            space.extend()
            began, last = time.perf_counter(), began
            self.num_products = done + space.num_products
            if self._progress is not None:
                self._progress(space.size, space.max_size)
            if space.size >= following:
                self._ritz = space.ritz()
                if self._exact(rtol):
                    return space
                following = space.size + max(self._block, space.size // 8)
            late = 2 * began - last > self._deadline  # another block would end after it
            if self._operator.rows.anyone(late):
                break
        self._ritz = space.ritz()
        return space

    def _saturated(self, cut: float) -> bool:
        """Whether there may be more eigenvalues beyond the cut than the subspace can hold.

        Either a cluster has as many members as there are start vectors, or these have a larger
        component in the span of what was found (``χ²`` with one degree of freedom for each
        eigenvector and probe) than its dimension makes likely.
        """
        pairs, b = self._pairs, self._block
        beyond = pairs.values.abs() > cut
        values = pairs.values[beyond]
        if len(values) < b or len(values) + len(self._locked_values) >= self._operator.dim:
            return False
        spread = values[b - 1 :] - values[: len(values) - b + 1]
        expected = float(b * len(values))
        surplus = float(pairs.weights[:, beyond].sum()) - expected
        crowded = bool((spread.abs() <= 1e-6 * self.largest).any())
        return crowded or surplus > 4 * math.sqrt(2 * expected)


def _most_degrees(total: float, probes: int, most: int) -> int:
    """Largest ``n`` up to ``most`` for which ``χ²(n · probes)`` is below ``total`` at times.

    With a probability of 1e-4, by the approximation of Wilson and Hilferty (Abramowitz and Stegun
    26.4.17), which is on the safe side for few degrees of freedom.
    """

    def quantile(n: int) -> float:
        k = n * probes
        return float(k * max(0.0, 1 - 2 / (9 * k) - 3.719 * math.sqrt(2 / (9 * k))) ** 3)

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if quantile(middle) <= total:
            low = middle
        else:
            high = middle - 1
    return low
