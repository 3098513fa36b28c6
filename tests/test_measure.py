"""The driver: what it measures, of which parts and layers, and that nothing passes it unchecked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.hessian.operator import NonFiniteError
from lightning_hessrank.hessian.verify import WrongProductError
from lightning_hessrank.measure import hessian_matrix, measure
from lightning_hessrank.results import PARTS
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from tests.oracles import dense_hessian, symmetric_rank
from tests.system.conditions import CONDITIONS, batch, network


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def subject(model: nn.Module, *pairs: tuple[torch.Tensor, torch.Tensor]) -> Subject:
    return Subject(model, list(pairs), model_step(F.mse_loss))


@pytest.fixture
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, 4).double(), torch.randn(n, 2).double()) for n in (5, 2)]


def test_the_matrix_is_the_hessian_of_the_mean(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    exact = dense_hessian(net(), F.mse_loss, pairs)
    torch.testing.assert_close(hessian_matrix(subject(net(), *pairs)), exact)
    core = hessian_matrix(subject(net(), *pairs), sketch_width=8)
    assert core.shape == (8, 8)
    parts = [hessian_matrix(subject(net(), *pairs), part) for part in PARTS[1:]]
    torch.testing.assert_close(sum(parts), exact)


@pytest.mark.filterwarnings("ignore:the rank is too close to the dimension")
@pytest.mark.parametrize("method", ["dense", "sketch"])
def test_ranks_of_parts_and_layers(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], method: str
) -> None:
    exact = dense_hessian(net(), F.mse_loss, pairs)
    whole = slice(None)
    layers = {"first": {"0.weight": whole, "0.bias": whole}, "last": {"2.weight": whole}}
    ranks = measure(subject(net(), *pairs), method=method, layers=layers)
    assert set(ranks.parts) == set(PARTS)
    assert ranks.total.rank == symmetric_rank(exact)
    assert ranks.layers["first"].rank == symmetric_rank(exact[:15, :15])
    assert ranks.layers["last"].rank == symmetric_rank(exact[15:21, 15:21])
    value = sum(float(F.mse_loss(net()(x).detach(), y)) * len(x) for x, y in pairs) / 7
    assert ranks.loss == pytest.approx(value, rel=1e-12)
    assert ranks.unexplained < 1e-12


def test_only_the_part_that_was_asked_for(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert set(measure(subject(net(), *pairs), parts=("outer",)).parts) == {"outer"}


def test_wrong_products_are_refused_unless_that_is_asked_for() -> None:
    model, pair = network("wrong second derivative"), batch("wrong second derivative")
    wrong = Subject(model, [pair], model_step(F.mse_loss))
    with pytest.raises(WrongProductError, match=CONDITIONS["wrong second derivative"].says):
        measure(wrong)
    with pytest.raises(WrongProductError):
        hessian_matrix(wrong)
    assert measure(wrong, verify=False, method="dense").total.rank > 0


def test_a_loss_that_is_not_finite_is_refused(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="output is not finite"):
        measure(subject(model, *pairs))


def test_the_choice_is_announced_before_it_starts(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    said: list[str] = []
    ranks = measure(subject(net(), *pairs), announce=said.append)
    assert [text.partition(":")[0] for text in said] == [ranks.total.method]
