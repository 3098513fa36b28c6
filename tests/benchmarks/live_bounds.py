"""How tight the bounds of nonlinear networks are, and that they are never below.

    python -m tests.benchmarks.live_bounds [number of networks] [first seed] [--json FILE]

Random small networks by family, random or trained for some steps, from one sample to more than
there are parameters; exact ranks from dense float64 derivatives. ``live`` is what users get
from ``batch_bound``, the smallest of those by activations and signals, flat directions and affine
blocks: where it is not below the exact rank, none of them is. ``generic`` is the generic rank of
those networks that are analytic. Prints, as Markdown tables, how often a bound was below the exact
rank, and median and 95th percentile of bound / exact for every family and part, of all networks
and of those with at least as many outputs that the loss sees (``N K'``) as parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import __version__
from lightning_hessrank.api import batch_bound, rank_bound
from lightning_hessrank.results import BoundNotAvailableError, RankBound
from tests.benchmarks import records
from tests.nonlinear import Attention, Gated, Residual, Unit
from tests.oracles import exact_ranks

PARTS = ("total", "outer", "functional")
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU)
#: Steps of training.
STEPS = (0, 0, 20, 100)


class Case(NamedTuple):
    """A network with data and loss."""

    family: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def seen(self) -> int:
        """Outputs that the loss sees, ``N K'``."""
        classes = 5 if self.family == "transformer" else 3
        return len(self.x) * (classes - (self.loss is F.cross_entropy))


class Block(nn.Module):
    """A transformer block on tokens that may come from an embedding, tied to the head or not."""

    def __init__(self, *, pre_norm: bool, tied: bool, gated: bool, act: Unit) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(5, 4), nn.Parameter(torch.randn(4, 4))
        self.one, self.two = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.o = nn.Linear(4, 12), nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        self.gate = nn.Linear(4, 5) if gated else None
        self.head = nn.Linear(4, 5, bias=False)
        self.pre_norm, self.act = pre_norm, act
        if tied:
            self.head.weight = self.embed.weight

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (2, 6)).transpose(1, 2).chunk(3, 3)
        return self.o(((q @ k.mT).softmax(3) @ v).transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places
        if self.pre_norm:
            x = x + self.attend(self.one(x))
            x = x + self.feed(self.two(x))
        else:
            x = self.one(x + self.attend(x))
            x = self.two(x + self.feed(x))
        return self.head(x.mean(1))


class ResNet(nn.Module):
    """A residual block of convolutions, with batch normalisation in either mode."""

    def __init__(self, act: Unit, *, trains: bool) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3, track_running_stats=not trains).train(trains)
        self.two, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.two(self.act(self.norm(self.one(x))))
        return self.head(self.act(x).mean((2, 3)))


def network(draw: random.Random, family: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of a family, and the shape of its samples."""
    act, bias = draw.choice(ACTIVATIONS), draw.random() < 0.6
    width = draw.randint(3, 7)
    if family == "mlp":
        other = draw.randint(3, 7)
        tail = [act(), nn.Linear(width, other, bias=bias)] if draw.random() < 0.6 else []
        end = nn.Linear(other if tail else width, 3, bias=bias)
        return nn.Sequential(nn.Linear(5, width, bias=bias), *tail, act(), end), (5,)
    if family == "cnn":
        c, pad = draw.randint(2, 4), draw.randint(0, 1)
        pool = draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()])
        body = [nn.Conv2d(1, c, 3, padding=pad, bias=bias), act(), pool, nn.Conv2d(c, 3, 2), act()]
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
        return nn.Sequential(*body, *end), (1, 6, 6)
    if family == "resnet":
        return ResNet(act(), trains=bias), (1, 6, 6)
    if family == "norms":
        norm = draw.choice([nn.LayerNorm(width), nn.BatchNorm1d(width, track_running_stats=False)])
        if draw.random() < 0.3:
            norm = nn.BatchNorm1d(width).eval()
        return nn.Sequential(nn.Linear(5, width), norm, act(), nn.Linear(width, 3)), (5,)
    if family == "residual":
        return Residual(width, act=act()), (6,)
    if family == "gated":
        return Gated(width, act=act()), (6,)
    if family == "attention":
        rotary = draw.random() < 0.4
        return Attention(draw.randint(1, 2), rotary=rotary, bias=not rotary, act=act()), (4, 4)
    pre_norm, tied, gated = (draw.random() < 0.5 for _ in range(3))
    return Block(pre_norm=pre_norm, tied=tied, gated=gated, act=act()), ()


FAMILIES = ("mlp", "cnn", "resnet", "norms", "residual", "gated", "attention", "transformer")


def case(seed: int) -> Case:
    """A random case; every family in turn."""
    draw, family = random.Random(seed), FAMILIES[seed % len(FAMILIES)]
    torch.manual_seed(seed)
    model, shape = network(draw, family)
    p = sum(x.numel() for x in model.parameters())
    few = draw.randint(2, 12)
    count = draw.choice([1, few, few, p // 2 + 5, p + 5])
    if any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules()):
        count = max(count, 2)
    outputs = 5 if family == "transformer" else 3
    x = torch.randn(count, *shape) if shape else torch.randint(5, (count, 4))
    if draw.random() < 0.5:
        y, loss = torch.randint(outputs, (count,)), F.cross_entropy
    else:
        y, loss = torch.randn(count, outputs), F.mse_loss
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(draw.choice(STEPS)):
        optimiser.zero_grad()
        loss(model(x), y).backward()
        optimiser.step()
    return Case(family, model, x, y, loss)


def bounds(one: Case) -> dict[str, RankBound]:
    """All bounds that there are."""
    found = {"live": batch_bound(one.model, one.loss, (one.x, one.y))}
    with contextlib.suppress(BoundNotAvailableError):
        generic = rank_bound(one.model, one.x, loss=one.loss, data=one.x, kind="generic")
        if generic.is_theorem:
            found["generic"] = generic
    return found


def results(count: int, first: int) -> Iterator[tuple[Case, dict[str, RankBound], dict[str, int]]]:
    """Bounds and exact ranks of random cases."""
    for seed in range(first, first + count):
        one = case(seed)
        yield one, bounds(one), exact_ranks(one.model, one.x, one.loss, one.y)


class Row(NamedTuple):
    """A part of one network."""

    family: str
    part: str
    is_free: bool
    """Whether there are no fewer outputs that the loss sees than parameters."""
    exact: int
    bounds: Mapping[str, int]
    source: str
    """What the live bound came from."""


def rows_of(one: Case, found: Mapping[str, RankBound], exact: Mapping[str, int]) -> Iterator[Row]:
    """What the tables need of one network."""
    is_free = one.seen >= found["live"].num_parameters
    for part in PARTS:
        values = {kind: getattr(bound, part) for kind, bound in found.items()}
        source = found["live"].sources.get(part, "batch")
        yield Row(one.family, part, is_free, exact[part], values, source)


def safety(rows: Iterable[Row]) -> records.Table:
    """How many bounds there were by what they came from, and how many below the exact rank."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        named = {"live": f"live, by {row.source}", "generic": "generic"}
        for kind, bound in row.bounds.items():
            count = counts.setdefault(named[kind], [0] * (len(PARTS) + 1))
            count[PARTS.index(row.part)] += 1
            count[-1] += bound < row.exact
    header = ["bound", *PARTS, "below the exact rank"]
    return [header, *([name, *map(str, x)] for name, x in sorted(counts.items()))]


def tightness(rows: Iterable[Row]) -> records.Table:
    """Bound / exact of the best bound; again where the outputs are no limit."""
    rows = [row for row in rows if row.exact]
    names = ("networks", "median", "95 %", "largest")
    table = [["family, part", *names, *(f"N K' ≥ p: {x}" for x in names)]]
    for family in FAMILIES:
        for part in PARTS:
            own = [row for row in rows if (row.family, row.part) == (family, part)]
            cells = [f"{family}, {part}"]
            for chosen in (own, [row for row in own if row.is_free]):
                ratios = [row.bounds["live"] / row.exact for row in chosen]
                ends = np.percentile(ratios, [50, 95, 100]) if ratios else []
                cells += [str(len(ratios)), *(f"{x:.3f}" for x in ends), *[""] * (3 - len(ends))]
            table.append(cells)
    return table


def say(seed: int, one: Case, row: Row) -> None:
    """Print what is below the exact rank, or loose."""
    below = [kind for kind, bound in row.bounds.items() if bound < row.exact]
    loose = row.part != "functional" and row.bounds["live"] > 1.1 * row.exact
    if below or loose:
        what = f"below: {', '.join(below)}" if below else "loose"
        print(f"seed {seed}, N = {len(one.x)}, {what}: {row}", flush=True)


def main() -> None:
    """Print the tables; write them after every fifty networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    rows: list[Row] = []
    for i, (one, found, exact) in enumerate(results(arguments.count, arguments.first), 1):
        new = list(rows_of(one, found, exact))
        rows += new
        for row in new:
            say(arguments.first + i - 1, one, row)
        if i % 50 and i < arguments.count:
            continue
        print(f"{i} networks", flush=True)
        records.TABLES["bounds of nonlinear networks"] = [safety(rows), tightness(rows)]
        if arguments.json:
            seeds = f"{i} networks, seeds from {arguments.first}"
            records.write(arguments.json, f"any; {seeds}; torch {torch.__version__}", __version__)
    for table in records.TABLES.get("bounds of nonlinear networks", []):
        print(f"\n{records.markdown(table)}")


if __name__ == "__main__":
    main()
