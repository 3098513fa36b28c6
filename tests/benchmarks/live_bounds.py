"""How tight the bounds of a live nonlinear network are, and that they are never below.

    python -m tests.benchmarks.live_bounds [number of networks] [first seed]

Random small networks by family, random or trained for a few steps, from one sample to more than
there are parameters; exact ranks from dense float64 derivatives. Prints, as a Markdown table, the
median and 95th percentile of bound / exact for every family and part; counts violations.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.api import batch_bound
from lightning_hessrank.results import RankBound
from tests.nonlinear import Attention, Gated, Residual
from tests.oracles import exact_ranks

PARTS = ("total", "outer", "functional")
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU)


class Case(NamedTuple):
    """A network with data and loss."""

    family: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module):
    """A transformer block on tokens that may come from an embedding, tied to the head or not."""

    def __init__(self, *, pre_norm: bool, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.one, self.two = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.o = nn.Linear(4, 12), nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.pre_norm = pre_norm
        if tied:
            self.head.weight = self.embed.weight

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (2, 6)).transpose(1, 2).chunk(3, 3)
        return self.o(((q @ k.mT).softmax(3) @ v).transpose(1, 2).flatten(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.pre_norm:
            x = x + self.attend(self.one(x))
            x = x + self.down(F.gelu(self.up(self.two(x))))
        else:
            x = self.one(x + self.attend(x))
            x = self.two(x + self.down(F.gelu(self.up(x))))
        return self.head(x.mean(1))


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
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), (
            1,
            6,
            6,
        )
    if family == "norms":
        norm = draw.choice([nn.LayerNorm(width), nn.BatchNorm1d(width, track_running_stats=False)])
        if draw.random() < 0.3:
            norm = nn.BatchNorm1d(width).eval()
        return nn.Sequential(nn.Linear(5, width), norm, act(), nn.Linear(width, 3)), (5,)
    if family == "residual":
        return Residual(), (6,)
    if family == "gated":
        return Gated(), (6,)
    if family == "attention":
        rotary = draw.random() < 0.4
        return Attention(draw.randint(1, 2), rotary=rotary, bias=not rotary), (4, 4)
    return Block(pre_norm=draw.random() < 0.5, tied=draw.random() < 0.5), ()


FAMILIES = ("mlp", "cnn", "norms", "residual", "gated", "attention", "transformer")


def case(seed: int) -> Case:
    """A random case; every family in turn."""
    draw, family = random.Random(seed), FAMILIES[seed % len(FAMILIES)]
    torch.manual_seed(seed)
    model, shape = network(draw, family)
    p = sum(x.numel() for x in model.parameters())
    few, many = draw.randint(2, 12), p // 2 + 5
    count = draw.choice([1, few, few, many])
    if any(isinstance(m, nn.BatchNorm1d) and m.training for m in model.modules()):
        count = max(count, 2)
    outputs = 5 if family == "transformer" else 3
    x = torch.randn(count, *shape) if shape else torch.randint(5, (count, 4))
    if draw.random() < 0.5:
        y, loss = torch.randint(outputs, (count,)), F.cross_entropy
    else:
        y, loss = torch.randn(count, outputs), F.mse_loss
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(draw.choice([0, 0, 20])):
        optimiser.zero_grad()
        loss(model(x), y).backward()
        optimiser.step()
    return Case(family, model, x, y, loss)


def results(count: int, first: int) -> Iterator[tuple[Case, RankBound, dict[str, int]]]:
    """Bounds and exact ranks of random cases."""
    for seed in range(first, first + count):
        one = case(seed)
        bound = batch_bound(one.model, one.loss, (one.x, one.y))
        yield one, bound, exact_ranks(one.model, one.x, one.loss, one.y)


def main(count: int, first: int) -> None:
    """Print the table."""
    torch.set_default_dtype(torch.float64)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    below = 0
    for one, bound, exact in results(count, first):
        for part in PARTS:
            value = getattr(bound, part)
            if value < exact[part]:
                below += 1
                print(f"below: {one.family}, {part}: {value} < {exact[part]}", flush=True)
            if exact[part]:
                found[one.family, part].append(value / exact[part])
    print(f"{count} networks, {below} bounds below the exact rank\n")
    print("| family | part | networks | median | 95 % | largest |\n|---|---|---|---|---|---|")
    for (family, part), values in sorted(found.items()):
        middle, high, top = np.percentile(values, [50, 95, 100])
        row = (family, part, len(values), f"{middle:.3f}", f"{high:.3f}", f"{top:.3f}")
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main(*(int(x) for x in (sys.argv[1:] + ["1000", "0"][len(sys.argv) - 1 :])))
