"""What is taken for the network's output: parts that add up, and bounds that hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import hessian_rank
from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import numerical_rank

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A linear network with two layers and access to the hidden one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def target_first(net: Net, batch: Batch) -> Tensor:
    return F.mse_loss(batch[1], net(batch[0]))


def by_name(net: Net, batch: Batch) -> Tensor:
    return F.mse_loss(target=batch[1], input=net(batch[0]))


def sliced(net: Net, batch: Batch) -> Tensor:
    o, y = net(batch[0]), batch[1]
    return F.mse_loss(o[:, :1], y[:, :1]) + F.mse_loss(o[:, 1:], y[:, 1:])


def column_by_column(net: Net, batch: Batch) -> Tensor:
    o, y = net(batch[0]), batch[1]
    return torch.stack([F.mse_loss(o[:, i], y[:, i]) for i in range(3)]).sum()


def deep_supervision(net: Net, batch: Batch) -> Tensor:
    h = net.first(batch[0])
    return F.mse_loss(net.second(h), batch[1]) + 0.1 * F.mse_loss(h[:, :3], batch[1])


def whole_hidden_layer(net: Net, batch: Batch) -> Tensor:
    h = net.first(batch[0])
    return F.mse_loss(net.second(h), batch[1]) + 0.1 * F.mse_loss(h, torch.zeros_like(h))


def same_output_twice(net: Net, batch: Batch) -> Tensor:
    o = net(batch[0])
    return F.mse_loss(o, batch[1]) + F.l1_loss(o, batch[1])


def softmax_twice(net: Net, batch: Batch) -> Tensor:
    o = net(batch[0])
    return F.cross_entropy(o, batch[1].softmax(1)) + 0.1 * F.mse_loss(o.softmax(-1), batch[1])


def softmax_by_hand(net: Net, batch: Batch) -> Tensor:
    return F.nll_loss(F.log_softmax(net(batch[0]), dim=-1), batch[1].argmax(1))


STEPS: list[Callable[[Net, Batch], Tensor]] = [
    target_first,
    by_name,
    sliced,
    column_by_column,
    deep_supervision,
    whole_hidden_layer,
    same_output_twice,
    softmax_twice,
    softmax_by_hand,
]


def subject_of(step: Callable[..., Any], net: nn.Module) -> Subject:
    return Subject(net, [(torch.randn(16, 5), torch.randn(16, 3))], module_step(net, step))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_the_parts_add_up_to_the_hessian(step: Callable[..., Any]) -> None:
    curvature = LossCurvature(subject_of(step, Net()).loss_function())
    total, outer, functional = (
        curvature.operator(part).to_dense() for part in ("total", "outer", "functional")
    )
    assert total.norm() > 0
    assert (total - outer - functional).norm() <= 1e-12 * total.norm()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_the_bound_is_not_below_the_rank(step: Callable[..., Any]) -> None:
    subject = subject_of(step, Net())
    curvature = LossCurvature(subject.loss_function())
    total = curvature.operator("total").to_dense()
    bound = reference_bound(subject)
    assert 0 < numerical_rank(torch.linalg.eigvalsh(total)).rank <= bound.total


def test_an_autoencoder_is_not_its_own_target() -> None:
    net = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 5, bias=False))
    subject = subject_of(lambda module, batch: F.mse_loss(batch[0], module(batch[0])), net)
    total = LossCurvature(subject.loss_function()).operator("total").to_dense()
    assert 0 < numerical_rank(torch.linalg.eigvalsh(total)).rank <= reference_bound(subject).total


def test_a_penalty_through_a_loss_function_is_no_output() -> None:
    def step(net: Net, batch: Batch) -> Tensor:
        w = net.first.weight
        return F.mse_loss(net(batch[0]), batch[1]) + 0.1 * F.mse_loss(w, torch.zeros_like(w))

    subject = subject_of(step, Net())
    result = subject.evaluate(subject.batches[0])
    assert [output.tensor.shape for output in result.outputs] == [(16, 3)]


@pytest.mark.parametrize(
    "named",
    [lambda o: o.detach(), lambda o: o.argmax(-1), lambda o: torch.ones(3), lambda o: [o]],
    ids=["detached", "classes", "unrelated", "list"],
)
def test_an_output_returned_for_logging_does_no_harm(named: Callable[[Tensor], Any]) -> None:
    def step(net: Net, batch: Batch) -> dict[str, Any]:
        o = net(batch[0])
        return {"loss": F.mse_loss(o, batch[1]), "output": named(o)}

    subject = subject_of(step, Net())
    result = subject.evaluate(subject.batches[0])
    assert [output.loss for output in result.outputs] == ["mse"]


def test_an_output_can_be_named_where_the_loss_is_written_by_hand() -> None:
    def step(net: Net, batch: Batch) -> dict[str, Any]:
        o = net(batch[0])
        return {"loss": ((o - batch[1]) ** 2).mean(), "output": o}

    subject = subject_of(step, Net())
    assert [x.loss for x in subject.evaluate(subject.batches[0]).outputs] == ["named"]


@pytest.mark.parametrize("loss", [F.l1_loss, F.huber_loss, F.smooth_l1_loss])
def test_a_loss_that_is_flat_in_the_output_has_no_outer_part(loss: Callable[..., Any]) -> None:
    x, y = torch.randn(8, 5), torch.randn(8, 3) + 100
    net = Net()
    assert hessian_rank(net, loss, (x, y), part="outer").rank == 0
    total = hessian_rank(net, loss, (x, y)).rank
    assert total == hessian_rank(net, loss, (x, y), part="functional").rank > 0


def test_a_loss_of_the_live_module_is_refused() -> None:
    net = Net()
    x, y = torch.randn(16, 5), torch.randn(16, 3)

    def penalised(o: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(o, y) + 1e-3 * net.first.weight.square().sum()

    with pytest.raises(ValueError, match="not from those of the copy that is measured: loss_fn"):
        hessian_rank(net, penalised, (x, y))
