"""Products with the Hessian of a live sharded module, from central differences of gradients.

``Hv = (∇L(θ + hv) − ∇L(θ − hv)) / 2h + O(h²)``, beside which gradients that are wrong by ``ε`` add
``ε / h`` (Nocedal, Wright, Numerical Optimization, section 8.1). Which of both wins depends on the
network and on the precision that it computes in, so several steps are tried, each a quarter of the
one before, and the products of neighbours are compared: their difference holds what the larger step
cuts off and what the smaller one rounds off, and bounds the error of either. Where activations have
kinks, differences converge as long as few of them lie within a step: that is seen in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.hessian.operator import SymmetricOperator
from lightning_hessrank.hessian.verify import WrongProductError
from lightning_hessrank.results import NonFiniteError
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.sharded.shards import ShardedRows, ShardProbes

#: Steps that are tried, and the ratio of neighbours.
RUNGS, RATIO = 6, 4.0
#: The error of other products than those that were compared, in units of theirs.
MARGIN = 2.0
#: By how much the loss may fall short of what the gradient promises.
SLOPE = 0.1


@dataclass(frozen=True)
class Resolution:
    """What differences of gradients tell."""

    step: float
    """Length of the displacement to either side."""
    error: float
    """Norm of the error of a product with a unit vector."""
    drift: float
    """Error of ``vᵀHv`` with a random unit vector."""
    scale: float
    """Norm of a product with a unit vector in which the largest eigenvalues prevail."""
    loss: float
    """At the parameters themselves."""

    @property
    def worst(self) -> float:
        """Error with a margin for products that were not looked at."""
        return MARGIN * self.error


class DifferenceOperator(SymmetricOperator):
    """The Hessian of the mean loss, by central differences; rows are sharded like parameters.

    Args:
        live: borrowed from training while products are asked for.
        resolution: step to take, and what it is worth.
    """

    block_size = 1
    dtype = torch.float64
    name = "total Hessian"

    def __init__(self, live: LiveModule, resolution: Resolution) -> None:
        self._live, self.resolution = live, resolution
        self.dim, self.device = live.rows.dim, live.rows.device

    @property
    def rows(self) -> ShardedRows:
        """Rows of vectors that this process holds."""
        return self._live.rows

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with vectors of shape ``(rows.count, k)``, two gradients for each."""
        norms = self.rows.norms(vectors).tolist()
        columns = [
            torch.zeros_like(column)
            if norm == 0
            else product(self._live, column / norm, self.resolution.step).mul_(norm)
            for column, norm in zip(vectors.unbind(dim=1), norms, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def error(self, scale: float, size: int) -> float:
        """Return what was measured."""
        return max(self.resolution.worst, super().error(scale, size))

    def check_finite(self, products: Tensor) -> None:
        """Raise :class:`NonFiniteError` on all processes if a product is not finite on any."""
        if self.rows.anyone(not bool(torch.isfinite(products).all())):
            raise NonFiniteError(f"the {self.name} is not finite at a finite loss")


def product(live: LiveModule, vector: Tensor, step: float) -> Tensor:
    """Return ``Hv`` for a unit vector from gradients at a distance ``step`` to either side."""
    ahead, _ = live.gradient(vector * step)
    behind, _ = live.gradient(vector * -step)
    return ahead.sub_(behind).div_(2 * step)


def resolve(live: LiveModule, *, seed: int = 0, verify: bool = True) -> Resolution:
    """Find the step at which differences are best, and what they resolve there.

    Two unit vectors are multiplied: a random one, and its product, in which the largest eigenvalues
    prevail. Costs about 24 gradients.

    Args:
        live: borrowed from training.
        seed: of the random vector.
        verify: whether the gradient is that of the loss.

    Raises:
        NonFiniteError: the loss, a gradient or a product is not finite.
        WrongProductError: the gradient is not that of the loss.
    """
    gradient, loss = live.gradient()
    slope = _norm(live, gradient)
    if not math.isfinite(loss) or not math.isfinite(slope):
        what = "loss" if not math.isfinite(loss) else "gradient of the loss"
        raise NonFiniteError(f"the {what} is not finite on the reference data")
    eps = torch.finfo(live.dtype).eps
    longest = RATIO * eps ** (1 / 3) * (live.norm or 1.0)
    steps = [longest / RATIO**i for i in range(RUNGS)]
    random = ShardProbes(live.rows, seed + 1).columns(0, 1)[:, 0]
    first = random / _norm(live, random)
    products = [product(live, first, step) for step in steps]
    middle = products[RUNGS // 2]
    size = _norm(live, middle)
    second = middle / size if size > 0 else first
    others = [product(live, second, step) for step in steps]
    best: Resolution | None = None
    for i, step in enumerate(steps[:-1]):
        off, off_others = products[i] - products[i + 1], others[i] - others[i + 1]
        asymmetry = abs(_dot(live, first, others[i]) - _dot(live, second, products[i]))
        error = max(_norm(live, off), _norm(live, off_others), asymmetry)
        if not math.isfinite(error):
            raise NonFiniteError("the total Hessian is not finite at a finite loss")
        if best is None or error < best.error:
            scale = max(_norm(live, products[i]), _norm(live, others[i]))
            best = Resolution(step, error, abs(_dot(live, first, off)), scale, loss)
    assert best is not None
    if verify and slope > 0:
        _check_slope(live, gradient / slope, slope, best, eps)
    return best


def _check_slope(
    live: LiveModule, direction: Tensor, slope: float, resolution: Resolution, eps: float
) -> None:
    """Compare the gradient with differences of the loss along it.

    A reduction that takes sums for means, or data that peers do not share, would show here. Along
    the gradient of a wide layer the loss bends more than along the random vector that the step was
    chosen for, so shorter steps are tried, as long as the loss has the digits for them.
    """
    step, found = resolution.step, list[float]()
    for _ in range(3 * RUNGS):
        if found and 4 * eps * abs(resolution.loss) / step > SLOPE * slope:
            break
        (_, ahead), (_, behind) = live.gradient(direction * step), live.gradient(direction * -step)
        found.append((ahead - behind) / (2 * step))
        if abs(found[-1] - slope) <= SLOPE * slope + 4 * eps * abs(resolution.loss) / step:
            return
        step /= RATIO
    nearest = min(found, key=lambda x: abs(x - slope))
    raise WrongProductError(
        f"along its gradient the mean loss changes by {nearest:.4g} per unit of length, but the "
        f"gradient that the strategy reduces has norm {slope:.4g}: it is not that of the mean over "
        "all processes' samples; let tensor-parallel peers load the same data, leave the loss a "
        "mean over samples, and take reductions that average"
    )


def _dot(live: LiveModule, first: Tensor, second: Tensor) -> float:
    return float(live.rows.sum((first * second).sum()[None]))


def _norm(live: LiveModule, vector: Tensor) -> float:
    return float(live.rows.norms(vector[:, None]))
