"""Which losses see only differences of the outputs, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import rank_bound
from lightning_hessrank.network.losses import LossKind
from lightning_hessrank.network.shifts import ignores_shifts, kind_of


def focal(outputs: Tensor, labels: Tensor) -> Tensor:
    log = outputs.log_softmax(1).gather(1, labels[:, None])[:, 0]
    return -((1 - log.exp()) ** 2 * log).mean()


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.log(torch.cosh(outputs - targets)).mean()


def penalised(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels) + 1e-4 * outputs.logsumexp(1).square().mean()


def pairwise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sees differences between outputs of a sample, not of softmax."""
    differences = outputs[:, :, None] - outputs[:, None]
    return (differences - (targets[:, :, None] - targets[:, None])).square().mean()


class Temperature(nn.Module):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.nll_loss((outputs / 2).log_softmax(1), labels)


def last_axis(outputs: Tensor, labels: Tensor) -> Tensor:
    """Classes last, as language models have them."""
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())


@pytest.mark.parametrize(
    ("loss", "shape", "dim"),
    [
        (focal, (6, 4), 1),
        (pairwise, (6, 4), 1),
        (Temperature(), (6, 4), 1),
        (last_axis, (6, 5, 4), 2),
        (lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1), (6, 4, 3), 1),
        (log_cosh, (6, 4), None),
        (penalised, (6, 4), None),
        (lambda f, y: 2 * F.huber_loss(f, y), (6, 4), None),
        (lambda f, y: (f[:, 0] - y[:, 0]).abs().mean(), (6, 1), None),
    ],
)
def test_shifts_that_a_loss_of_ones_own_ignores_are_found(
    loss: Callable[..., Any], shape: tuple[int, ...], dim: int | None
) -> None:
    assert kind_of(loss, (torch.zeros(shape),)).class_dim == dim


def test_losses_of_the_table_are_read_there() -> None:
    outputs = (torch.zeros(3, 2),)
    assert kind_of("cross_entropy", outputs).class_dim == 1
    assert kind_of(nn.MSELoss(), outputs).identity_curvature
    given = LossKind("mine", class_dim=1)
    assert kind_of(given, outputs) is given
    assert kind_of(focal, (torch.zeros(3, 2), torch.zeros(3, 2))) == LossKind("focal")


def test_what_gives_no_loss_is_refused_with_its_error() -> None:
    def strange(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("I want four arguments")

    with pytest.raises(
        TypeError,
        match=r"^loss 'strange' gives no loss for outputs of shape \(3, 2\), neither with labels "
        r"nor .*the last error: I want four arguments\); pass loss\(outputs, targets\)",
    ):
        kind_of(strange, (torch.zeros(3, 2),))
    with pytest.raises(TypeError, match="float that does not depend on them"):
        kind_of(lambda outputs, targets: 1.0, (torch.zeros(3, 2),))


@pytest.mark.parametrize("bias", [False, True])
def test_the_bound_of_a_loss_of_ones_own_is_that_of_its_kind(bias: bool) -> None:
    """The bound of the paper depends on a loss through the outputs that it sees, ``K'``."""
    net = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.Linear(4, 3, bias=bias))
    x = torch.randn(2, 5)
    for data in (None, x):
        expected = rank_bound(net, x, loss="cross_entropy", data=data)
        for loss in (focal, Temperature(), pairwise):
            found = rank_bound(net, x, loss=loss, data=data)
            assert (found.total, found.outer) == (expected.total, expected.outer)
        assert rank_bound(net, x, loss=log_cosh, data=data).outer == (
            rank_bound(net, x, loss="l1", data=data).outer
        )


def test_an_output_that_the_loss_does_not_see_may_be_shifted() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    seen, unseen = torch.randn(6, 3) @ weight, torch.randn(6, 3) @ weight
    loss = seen.square().mean()
    assert ignores_shifts(loss, unseen, 1, {"weight": weight})
    assert not ignores_shifts(loss, seen, 1, {"weight": weight})
