"""What the scripts of this folder share: data, networks, exact measurements and tables.

Every rank is exact, taken at fixed random weights in float64: by all eigenvalues of the Hessian, or
by a sketch where a bound that is a theorem is far below the number of parameters. Nothing here
asks how fast the machine is, so a script finds the same numbers on a busy one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hessrank import RankBound, RankEstimate, hessian_rank, rank_bound

# Small matrices are fastest so, and a second thread that waits for its core costs minutes.
torch.set_num_threads(1)

#: Below this gap at the cut a count would be a matter of taste; the tests insist on it.
CLEAR_GAP = 1e3


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``log cosh(f - y)``, the third loss of the papers."""
    return (outputs - targets).cosh().log().mean()


class Loss(NamedTuple):
    """A loss, and what a bound has to know of it."""

    function: Callable[[Tensor, Tensor], Tensor]
    kind: str


#: A loss of one's own that may use every output counts like "l1_loss" for the bound.
LOSSES = {
    "MSE": Loss(F.mse_loss, "mse"),
    "cross-entropy": Loss(F.cross_entropy, "cross_entropy"),
    "cosh": Loss(log_cosh, "l1_loss"),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """One network, its loss and its data: what a rank is measured of."""

    name: float | str
    """The value that is varied: what the horizontal axis or the first column shows."""
    model: nn.Module
    loss: str
    """Key of :data:`LOSSES`."""
    inputs: Tensor
    targets: Tensor


def digits(count: int, loss: str = "cross-entropy") -> tuple[Tensor, Tensor]:
    """The first ``count`` images of scikit-learn's handwritten digits, with targets for the loss.

    Each pixel is divided by its root mean square; those that are always 0 stay so. That changes the
    rank of the data by nothing, but without it what rarely used pixels add to the Hessian is so
    small that machine precision cuts some of it off.

    Returns:
        Images ``(count, 1, 8, 8)``; class numbers ``(count,)``, or ``(count, 10)`` with a 1 at the
        class where the loss compares numbers.
    """
    data = load_digits()
    images = torch.tensor(data.images[:count]).unsqueeze(1)
    scale = images.square().mean(0).sqrt()
    images = images / scale.where(scale > 0, 1.0)
    labels = torch.tensor(data.target[:count])
    return images, labels if loss == "cross-entropy" else F.one_hot(labels, 10).double()


def gaussian(count: int, shape: Sequence[int], outputs: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(count, *shape)`` and targets ``(count, outputs)`` without any structure."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(count, outputs, generator=generator, dtype=torch.float64)


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network in float64 with Glorot's weights, as the papers do, and biases that count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.normal_(parameter, std=0.5)
    return model


def family(
    values: Iterable[Any],
    network: Callable[[Any], nn.Module],
    loss: str,
    data: tuple[Tensor, Tensor],
) -> list[Setting]:
    """The same data and loss for ``network(value)`` with each of the values."""
    return [Setting(value, drawn(partial(network, value)), loss, *data) for value in values]


def chain(
    widths: Sequence[int], *, bias: bool = False, activation: type[nn.Module] = nn.Identity
) -> nn.Sequential:
    """Fully connected network: ``chain([64, 20, 10])`` has one hidden layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, eq=False)
class Case:
    """Exact ranks of one setting beside its bound."""

    name: float | str
    estimate: RankEstimate
    bound: RankBound
    """Of the linear surrogate: a theorem where the network is linear."""
    outer: int | None = None
    functional: int | None = None
    gap: float = float("inf")
    """The smallest gap at a cut among the three ranks."""

    @property
    def rank(self) -> int:
        """Of the whole Hessian, at machine precision."""
        return int(self.estimate.rank)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters ``p``."""
        return self.estimate.num_parameters


def measure(
    setting: Setting, *, parts: bool = True, method: Literal["dense", "sketch"] = "dense"
) -> Case:
    """Measure the rank, and those of the two parts if wanted, and bound them.

    Args:
        setting: what to measure.
        parts: also the outer-product and the functional Hessian.
        method: ``"sketch"`` only for linear networks, whose bound is a theorem.
    """
    loss, data = LOSSES[setting.loss], (setting.inputs, setting.targets)
    bound = rank_bound(setting.model, setting.inputs[:1], loss=loss.kind, data=setting.inputs)

    def rank_of(part: Literal["total", "outer", "functional"], most: int | None) -> RankEstimate:
        most = most if method == "sketch" else None
        return hessian_rank(
            setting.model, loss.function, data, part=part, method=method, max_rank=most
        )

    total = rank_of("total", bound.total)
    if not parts:
        return Case(setting.name, total, bound, gap=_gap(total))
    outer, functional = rank_of("outer", bound.outer), rank_of("functional", bound.functional)
    gap = min(map(_gap, (total, outer, functional)))
    return Case(setting.name, total, bound, int(outer.rank), int(functional.rank), gap)


def _gap(estimate: RankEstimate) -> float:
    return float("inf") if estimate.gap is None else estimate.gap


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, the first to the left."""
    lines = [list(map(str, header)), *([_cell(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (
            f"{text:<{width}}" if i == 0 else f"{text:>{width}}"
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value.is_integer() else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_cases(title: str, name: str, cases: Sequence[Case]) -> None:
    """Print exact ranks beside bounds, and how clear-cut the least clear of them is."""
    print(f"\n{title}")
    header = (name, "p", "outer", "functional", "rank", "bound", "kind")
    rows = [
        (c.name, c.parameters, c.outer, c.functional, c.rank, c.bound.total, c.bound.kind)
        for c in cases
    ]
    if cases[0].outer is None:
        header, rows = (*header[:2], *header[4:]), [(*row[:2], *row[4:]) for row in rows]
    print_table(header, rows)
    print(f"smallest gap at a cut: {min(c.gap for c in cases):.0e}")
