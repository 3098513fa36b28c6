"""A family of networks for ``hessrank sweep``: built, given data, measured, and written down."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_hessrank.api import hessian_rank, rank_bound
from lightning_hessrank.cli.parameters import build_module, told, without_forward
from lightning_hessrank.cli.spec import Spec
from lightning_hessrank.dashboard.figures.growth import Growth, root_fit
from lightning_hessrank.network.batches import batch_size
from lightning_hessrank.network.losses import loss_kind
from lightning_hessrank.results import BoundNotAvailableError, RankBound, RankEstimate

Loss = str | Callable[..., Any]
Pairs = list[tuple[Any, Any]]
#: ``exact`` decides between the two by sizes alone, so that a busy machine changes nothing.
ExactMethod = Literal["exact", "dense", "sketch"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "mse": nn.functional.mse_loss,
    "cross_entropy": nn.functional.cross_entropy,
}
#: A sketch pays where the bound is at most this share of the parameters, and these are many.
SKETCH_SHARE, SKETCH_FROM = 0.6, 3000
#: Most Gaussian samples that are drawn unless told otherwise.
MAX_SAMPLES = 512
COLUMNS = (
    *("parameters", "rank", "bound", "bound_kind", "bound_is_theorem", "root_fit"),
    *("method", "rtol", "gap", "samples"),
)


class MeasurementError(RuntimeError):
    """One network of the family cannot be measured; the message says which, and why."""


class Varied(NamedTuple):
    """A parameter of the model, and the values that it takes."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """One network of the family."""

    values: tuple[Any, ...]
    estimate: RankEstimate
    bound: RankBound | None
    num_samples: int
    """That it was measured on, and that the bound holds for."""

    @property
    def growth(self) -> Growth:
        """What the picture and the fit see of it."""
        total = None if self.bound is None else self.bound.total
        theorem = self.bound is not None and self.bound.is_theorem
        label = ", ".join(map(str, self.values))
        return Growth(self.estimate.num_parameters, self.estimate.rank, total, theorem, label)


@dataclass(frozen=True)
class Family:
    """What all networks of a family have in common.

    Args:
        model: builds one; its varied parameters are passed by name.
        varied: all combinations of their values are measured, the last one fastest.
        loss: ``"mse"``, ``"cross_entropy"``, or ``loss(outputs, targets) -> scalar``.
        source: the data, for a network.
        method: how ranks are found.
        seed: of the weights of every network, and of random probes.
    """

    model: Spec
    varied: Sequence[Varied]
    loss: Loss
    source: Callable[[nn.Module], Pairs]
    method: ExactMethod = "exact"
    seed: int = 0

    def measure(self) -> Iterator[Row]:
        """Measure one network after the other.

        Raises:
            MeasurementError: one cannot be measured.
            BadParameter: one cannot be built.
        """
        for values in itertools.product(*(v.values for v in self.varied)):
            chosen = dict(zip((v.name for v in self.varied), values, strict=True))
            network = self._build(chosen)
            try:
                pairs = self.source(network)
                bound = linear_bound_of(network, pairs, self.loss)
                samples = sum(batch_size(pair) for pair in pairs)
                row = Row(values, self._rank(network, pairs, bound), bound, samples)
            except Exception as error:  # the user's own forward may raise anything
                where = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
                why = without_forward(error, self.model) or told(error)
                raise MeasurementError(f"{self.model.text} with {where}: {why}") from error
            yield row

    def _build(self, chosen: dict[str, Any]) -> nn.Module:
        arguments = {**self.model.kwargs, **chosen}
        spec = dataclasses.replace(self.model, args=self.model.args or (), kwargs=arguments)
        torch.manual_seed(self.seed)
        return build_module(spec).eval()

    def _rank(self, network: nn.Module, pairs: Pairs, bound: RankBound | None) -> RankEstimate:
        function = FUNCTIONS[self.loss] if isinstance(self.loss, str) else self.loss
        size = sum(p.numel() for p in network.parameters() if p.requires_grad)
        theorem = bound.total if bound is not None and bound.is_theorem else None
        pays = theorem is not None and size > SKETCH_FROM and theorem <= SKETCH_SHARE * size
        sketch = self.method == "sketch" or (self.method == "exact" and pays)
        return hessian_rank(
            network,
            function,
            pairs,
            method="sketch" if sketch else "dense",
            max_rank=theorem if sketch else None,
            seed=self.seed,
        )


def linear_bound_of(network: nn.Module, pairs: Pairs, loss: Loss) -> RankBound | None:
    """Return the linear bound on these data, or warn that there is none."""
    inputs = pairs[0][0]
    example = inputs[:1] if isinstance(inputs, Tensor) else inputs
    try:
        return rank_bound(network, example, loss=loss, data=pairs)
    except (BoundNotAvailableError, TypeError) as error:  # no bound, or no loss when tried
        warnings.warn(f"no bound: {error}", stacklevel=2)
        return None


def gaussian(
    network: nn.Module, shape: Sequence[int], samples: int | None, loss: Loss, seed: int
) -> Pairs:
    """Draw inputs, and targets of the form that the loss takes for the network's output.

    Args:
        network: whose output tells the form of the targets.
        shape: of one sample.
        samples: how many; ``None``: twice as many as a sample has numbers, so that they span all
            inputs, at most :data:`MAX_SAMPLES`.
        loss: class numbers for cross-entropy, zeros and ones for its binary form, else Gaussian.
        seed: of the draw.

    Raises:
        TypeError: the network does not return a tensor.
    """
    count = samples or min(2 * math.prod(shape), MAX_SAMPLES)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    with torch.no_grad():
        outputs = network(inputs.to(next(network.parameters(), inputs).dtype))
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"it returns a {type(outputs).__name__}, not a tensor; pass --data and a "
            "--loss that takes it"
        )
    try:
        kind = loss_kind(loss).name
    except TypeError:
        kind = ""
    if kind in ("cross_entropy", "nll_loss"):
        size = (count, *outputs.shape[2:])
        return [(inputs, torch.randint(outputs.shape[1], size, generator=generator))]
    if kind.startswith("binary_cross_entropy"):
        return [(inputs, torch.randint(2, outputs.shape, generator=generator).to(inputs))]
    return [(inputs, torch.randn(outputs.shape, generator=generator))]


def write_rows(path: Path, varied: Sequence[Varied], rows: Sequence[Row]) -> None:
    """Write all rows so far as CSV: the fit in every one changes with each new one.

    Raises:
        OSError: the file cannot be written.
    """
    fit = root_fit([row.growth for row in rows])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(v.name for v in varied), *COLUMNS])
        for row in rows:
            size = row.estimate.num_parameters
            writer.writerow([*row.values, *cells(row)[:5], f"{fit.at(size):.1f}", *cells(row)[5:]])


def cells(row: Row) -> list[Any]:
    """The columns of a row but for the fit; what there is not is empty."""
    estimate, bound = row.estimate, row.bound
    return [
        estimate.num_parameters,
        estimate.rank,
        *(("", "", "") if bound is None else (bound.total, bound.kind, bound.is_theorem)),
        estimate.method,
        f"{estimate.rtol:.3g}",
        "" if estimate.gap is None else f"{estimate.gap:.3g}",
        row.num_samples,
    ]
