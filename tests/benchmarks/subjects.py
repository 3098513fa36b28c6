"""Networks and data of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.hessian import Evaluation, LossCurvature, LossFunction, LossTerm


@dataclass
class Subject:
    """A network, a loss and one batch."""

    net: nn.Module
    loss: nn.Module
    x: Tensor
    y: Tensor

    def curvature(self) -> LossCurvature:
        """As the package measures it."""

        def evaluate() -> Evaluation:
            output = self.net(self.x)
            return Evaluation(self.loss(output, self.y), (output,))

        parameters = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        return LossCurvature(LossFunction(parameters, [LossTerm(1.0, evaluate)]))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.net.parameters())


def digits(count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Handwritten digits of scikit-learn, 64 numbers in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data[start : start + count]) / 16
    return x, torch.tensor(data.target[start : start + count])


def mlp(widths: tuple[int, ...] = (64, 48, 32, 10), samples: int = 256) -> Subject:
    """Fully connected, ReLU, with biases, on digits."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, (c, m) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(c, m)]
    x, y = digits(samples)
    return Subject(nn.Sequential(*layers).double(), nn.CrossEntropyLoss(), x, y)


def mlp_dense() -> Subject:
    """The same on Gaussian inputs: digits have pixels that are always dark."""
    same = mlp()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(same.x.shape, generator=generator, dtype=torch.float64)
    return Subject(same.net, same.loss, x, same.y)


def cnn(channels: tuple[int, int] = (8, 12), samples: int = 256, train: int = 0) -> Subject:
    """Two 3×3 convolutions and a head, on digits; ``train``: epochs on 1,500 of them."""
    torch.manual_seed(0)
    a, b = channels
    net = nn.Sequential(
        nn.Conv2d(1, a, 3),
        nn.ReLU(),
        nn.Conv2d(a, b, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * b, 10),
    ).double()
    x, y = digits(1500)
    x = x.view(-1, 1, 8, 8)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(train):
        for batch in torch.randperm(1500).split(100):
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    net.zero_grad()
    return Subject(net, nn.CrossEntropyLoss(), x[:samples], y[:samples])


def linear_mlp(widths: tuple[int, ...] = (128, 96, 96, 4)) -> Subject:
    """Without activations and biases; as it is: rank 2,016 of 21,888."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(c, m, bias=False) for c, m in pairwise(widths)))
    x, y = torch.randn(400, widths[0]).double(), torch.randn(400, widths[-1]).double()
    return Subject(net.double(), nn.MSELoss(), x, y)


def linear_cnn() -> Subject:
    """Two 5-tap convolutions over time, a pooled head, two outputs; p = 101,814."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(1, 142, 5, bias=False),
        nn.Conv1d(142, 142, 5, bias=False),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(142, 2, bias=False),
    )
    x, y = torch.randn(32, 1, 12).double(), torch.randn(32, 2).double()
    return Subject(net.double(), nn.MSELoss(), x, y)


class _Block(nn.Module):
    def __init__(self, c: int, m: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c, m, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(m), nn.BatchNorm2d(m)])
        self.pad = m - c

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.pad))
        return F.relu(x + y)


def resnet20() -> Subject:
    """He et al.'s ResNet-20 for 3×32×32, evaluation mode, 64 random images, float32."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    c = 16
    for m, stride in (
        (16, 1),
        (16, 1),
        (16, 1),
        (32, 2),
        (32, 1),
        (32, 1),
        (64, 2),
        (64, 1),
        (64, 1),
    ):
        blocks.append(_Block(c, m, stride))
        c = m
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return Subject(
        net.eval(), nn.CrossEntropyLoss(), torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    )
