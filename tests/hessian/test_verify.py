"""Wrong products are found, right ones are not accused, and penalties are told from losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.verify import (
    SPLIT_TOLERANCE,
    WrongProductError,
    check_product,
    unexplained_share,
)
from lightning_hessrank.subject.step import Step, StepResult, model_step
from lightning_hessrank.subject.subject import Subject


def subject(
    net: nn.Module, step: Step | None = None, *, samples: int = 8, seed: int = 0
) -> Subject:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 6, generator=generator)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    return Subject(net, [(inputs, labels)], step or model_step(F.cross_entropy))


def mlp(activation: Callable[[], nn.Module], width: int = 8, depth: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


class WrongSecond(torch.autograd.Function):
    """A right gradient, whose own derivative is off by a factor."""

    factor = 0.9

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        right = 1 - torch.tanh(x) ** 2
        leaning = WrongSecond.factor * right + (1 - WrongSecond.factor) * right.detach()
        return grad * leaning


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = WrongSecond.apply(x)
        return result


SMOOTH = [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity]
KINKED = [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6]


@pytest.mark.parametrize("activation", [*SMOOTH, *KINKED])
@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm(activation: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net = mlp(activation, depth=1 + seed % 3)
    if seed % 2:  # scales that training reaches
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(10.0 ** (seed - 2))
    check_product(subject(net, seed=seed).loss_function(), seed=seed)


def test_no_false_alarm_with_many_kinks() -> None:
    """Fifty thousand ReLUs: at most step sizes some of them switch."""
    check_product(subject(mlp(nn.ReLU, width=64, depth=3), samples=256).loss_function())


def test_no_false_alarm_exactly_on_kinks() -> None:
    net = mlp(nn.ReLU)
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    dead = Subject(
        net, [(torch.zeros(4, 6), torch.tensor([0, 1, 2, 0]))], model_step(F.cross_entropy)
    )
    check_product(dead.loss_function())


def test_no_false_alarm_where_the_hessian_vanishes() -> None:
    def step(net: nn.Module, batch: Any) -> StepResult:
        return StepResult(net(batch[0]).sum(), ())

    check_product(subject(nn.Linear(6, 3), step).loss_function())


@pytest.mark.parametrize("factor", [0.0, 0.9, 0.99])
def test_a_wrong_second_derivative_is_found(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WrongSecond, "factor", factor)
    with pytest.raises(WrongProductError, match="custom autograd functions WrongSecond"):
        check_product(subject(mlp(Wrong)).loss_function())
    monkeypatch.setattr(WrongSecond, "factor", 1.0)
    check_product(subject(mlp(Wrong)).loss_function())


def test_the_check_moves_nothing() -> None:
    tested = subject(mlp(nn.Tanh))
    before = {name: x.detach().clone() for name, x in tested.parameters.items()}
    state = torch.get_rng_state()
    check_product(tested.loss_function())
    assert all(torch.equal(x, before[name]) for name, x in tested.parameters.items())
    assert torch.equal(state, torch.get_rng_state())


def penalised(weight: float, power: int) -> Step:
    def step(net: nn.Module, batch: Any) -> StepResult:
        result = model_step(F.cross_entropy)(net, batch)
        penalty = sum(x.abs().pow(power).sum() for x in net.parameters())
        return StepResult(result.loss + weight * penalty, result.outputs)

    return step


@pytest.mark.parametrize(
    ("step", "regularised"),
    [
        (model_step(F.cross_entropy), False),
        (model_step(lambda f, y: F.mse_loss(f, F.one_hot(y, 3).to(f))), False),
        (penalised(0.0, 2), False),
        (penalised(1e-4, 2), True),
        (penalised(1e-7, 2), True),
        (penalised(1e-4, 1), False),  # |w| has no curvature
    ],
)
def test_penalties_are_told_from_losses(step: Step, regularised: bool) -> None:
    share = unexplained_share(LossCurvature(subject(mlp(nn.Tanh), step).loss_function()))
    assert (share > SPLIT_TOLERANCE) is regularised
    if not regularised:
        assert share < SPLIT_TOLERANCE / 100
