"""Time and memory of the bound of a ResNet-18 on 3×32×32 images.

python -m pytest -m benchmark -s tests/benchmarks/test_bound_cost.py
"""

from __future__ import annotations

import resource
import time

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.api import rank_bound


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut."""

    def __init__(self, c: int, m: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, m, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or c != m:
            self.shortcut = nn.Sequential(nn.Conv2d(c, m, 1, stride, bias=False), nn.BatchNorm2d(m))

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(z)) + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Sequential:
    """ResNet-18 with the stem that is usual for small images."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    c = width
    for stage in range(4):
        m = width * 2**stage
        layers += [Block(c, m, 1 if stage == 0 else 2), Block(m, m, 1)]
        c = m
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


@pytest.mark.benchmark
def test_the_bound_of_a_resnet_18() -> None:
    model = resnet18().eval()
    wall, cpu = time.perf_counter(), time.process_time()
    bound = rank_bound(model, torch.zeros(1, 3, 32, 32), loss="cross_entropy")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{bound}\n\n{wall:.0f} s wall, {cpu:.0f} s CPU, peak memory {memory:.1f} GiB")
    assert bound.num_parameters == 11_173_962
    assert bound.total < bound.num_parameters / 4
    assert memory < 4
