"""Several batches: their loss is that of all samples together, or it is said that it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import hessian_rank

WEIGHT = torch.tensor([1e-3, 1.0, 50.0]).double()


def ignoring(f: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(f, t.where(t.bool(), -100))


def class_weights(f: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(f, t, weight=WEIGHT)


def summed(f: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(f, t, reduction="sum")


def by_hand(f: Tensor, t: Tensor) -> Tensor:
    weight = 1.0 + t
    return (weight * F.cross_entropy(f, t, reduction="none")).sum() / weight.sum()


@pytest.mark.parametrize("loss", [F.cross_entropy, ignoring, class_weights, summed, by_hand])
@pytest.mark.parametrize("sizes", [[20, 10], [7, 20, 3]])
def test_the_loss_is_that_of_all_samples(loss: Callable[..., Tensor], sizes: list[int]) -> None:
    x, t = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    t[:20:2] = 0
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    whole = hessian_rank(net, loss, (x, t)).eigenvalues
    pairs = list(zip(x.split(sizes), t.split(sizes), strict=True))
    parts = hessian_rank(net, loss, pairs).eigenvalues
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-11 * float(whole.abs().max()))


def test_samples_that_see_each_other_are_said_to() -> None:
    def contrastive(f: Tensor, t: Any) -> Tensor:
        return F.cross_entropy(f @ f.T, torch.arange(len(f)))

    x, t = torch.randn(12, 4), torch.zeros(12)
    data = list(zip(x.split(6), t.split(6), strict=True))
    with pytest.warns(RuntimeWarning, match="no weighted mean of their losses"):
        hessian_rank(nn.Linear(4, 2), contrastive, data)
