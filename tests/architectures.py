"""Random small linear architectures: the generator that every sweep of the bounds draws from."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``x + body(x)``, with a 1×1 convolution around it where the channels change."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Branches(nn.Module):
    """Parallel branches, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


@dataclass(frozen=True)
class Case:
    """A network with data and loss, and what is special about it."""

    seed: int
    model: nn.Sequential
    inputs: Tensor
    loss: str
    num_outputs: int
    features: frozenset[str]
    """Of ``bottleneck``, ``pointwise``, ``pooled``, ``biases``, ``groups``, ``residual``, …."""

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


class _Builder:
    def __init__(self, seed: int, *, biases: bool | None) -> None:
        self.draw = random.Random(seed)
        self.dims = self.draw.choice([1, 2, 2])
        self.size = self.draw.randint(6, 10) if self.dims == 1 else self.draw.randint(4, 6)
        self.bias = self.draw.random() < 0.35 if biases is None else biases
        self.outputs = self.draw.randint(1, 5)
        self.channels = self.draw.randint(1, 3)
        self.shape = (self.channels, *(self.size,) * self.dims)
        self.features: set[str] = {"biases"} if self.bias else set()
        self.layers: list[nn.Module] = []

    def conv(self, c: int, m: int, k: int, **options: int) -> nn.Module:
        kind = (nn.Conv1d, nn.Conv2d)[self.dims - 1]
        if k == 1:
            self.features.add("pointwise")
        if m < min(c, self.outputs):
            self.features.add("bottleneck")
        return kind(c, m, k, bias=self.bias, **options)

    def add_block(self) -> None:
        d = self.draw
        kind = d.choices(
            ["conv", "pointwise", "residual", "grouped", "depthwise", "branches", "pool", "norm"],
            [8, 2.5, 2.5, 1, 1, 1, 1.5, 0.7],
        )[0]
        c, m = self.channels, d.randint(1, 7)
        if kind == "conv":
            k = d.randint(2, 3)
            dilation = 2 if self.size > 5 and d.random() < 0.15 else 1
            reach = dilation * (k - 1) + 1
            padding = d.randint(0, 1)
            stride = 2 if d.random() < 0.2 else 1
            if self.size + 2 * padding < reach:
                return
            options = {"padding": padding, "stride": stride, "dilation": dilation}
            self.layers.append(self.conv(c, m, k, **options))
            self.size = (self.size + 2 * padding - reach) // stride + 1
            self.channels = m
        elif kind == "pointwise":
            self.layers.append(self.conv(c, m, 1))
            self.channels = m
        elif kind == "residual":
            body: nn.Module = self.conv(c, m, 3, padding=1)
            shortcut = None if m == c else self.conv(c, m, 1)
            if d.random() < 0.4:
                body = nn.Sequential(body, self.conv(m, m, 3, padding=1))
            self.layers.append(Residual(body, shortcut))
            self.channels = m
        elif kind == "grouped":
            groups = 2
            if c % 2:
                return
            self.layers.append(self.conv(c, 2 * d.randint(1, 3), 3, padding=1, groups=groups))
            self.channels = self.layers[-1].out_channels
        elif kind == "depthwise":
            self.layers.append(self.conv(c, c * d.randint(1, 2), 3, padding=1, groups=c))
            self.channels = self.layers[-1].out_channels
        elif kind == "branches":
            m = d.randint(1, 4)
            self.layers.append(Branches(self.conv(c, m, 3, padding=1), self.conv(c, m, 1)))
            self.channels = 2 * m
        elif kind == "pool" and self.size >= 4:
            self.layers.append((nn.AvgPool1d, nn.AvgPool2d)[self.dims - 1](2))
            self.size //= 2
        elif kind == "norm":
            self.layers.append((nn.BatchNorm1d, nn.BatchNorm2d)[self.dims - 1](c).eval())
        self.features.add(kind)

    def add_head(self) -> None:
        if self.draw.random() < 0.3:
            self.features.add("pooled")
            pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[self.dims - 1](1)
            self.layers += [pool, nn.Flatten()]
            width = self.channels
        else:
            self.layers.append(nn.Flatten())
            width = self.channels * self.size**self.dims
        if self.draw.random() < 0.3:
            hidden = self.draw.randint(2, 8)
            self.features.add("two-layer head")
            if hidden < self.outputs:
                self.features.add("bottleneck")
            self.layers.append(nn.Linear(width, hidden, bias=self.bias))
            width = hidden
        self.layers.append(nn.Linear(width, self.outputs, bias=self.bias))


def random_case(
    seed: int, *, max_parameters: int = 1200, plain_data: bool = False, biases: bool | None = None
) -> Case:
    """Draw a case; ``plain_data``: as many samples as there are features, so that r = d."""
    attempt = 0
    while True:
        build = _Builder(1_000_003 * attempt + seed, biases=biases)
        for _ in range(build.draw.randint(1, 4)):
            build.add_block()
        build.add_head()
        model = nn.Sequential(*build.layers)
        if sum(p.numel() for p in model.parameters()) <= max_parameters:
            break
        attempt += 1
    torch.manual_seed(seed)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            torch.nn.init.normal_(p, std=max(1, p[0].numel()) ** -0.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    features = torch.Size(build.shape).numel()
    rank, count = features, features + 4
    if not plain_data and build.draw.random() < 0.4:
        rank, count = build.draw.randint(1, 6), build.draw.randint(1, 12)
        build.features.add("thin data")
    x = torch.randn(count, rank) @ torch.randn(rank, features) / rank**0.5
    loss = build.draw.choice(["mse", "cross_entropy"])
    return Case(
        seed,
        model,
        x.reshape(count, *build.shape),
        loss,
        build.outputs,
        frozenset(build.features),
    )
