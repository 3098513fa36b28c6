"""Wrong products are found, right ones are not accused, and penalties are told from losses."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.hessian import Evaluation, LossCurvature, LossFunction, LossTerm
from lightning_hessrank.hessian.verify import (
    SPLIT_TOLERANCE,
    NoSecondDerivativeError,
    WrongProductError,
    check_product,
    unexplained_share,
)
from lightning_hessrank.measure import opened
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


class Lookup(nn.Embedding):
    """An embedding below ``torch.nn.functional``, where the measured copy leaves it as it is."""

    def __init__(self, scaled: bool) -> None:
        super().__init__(6, 3)
        self.scaled = scaled

    def forward(self, words: Tensor) -> Tensor:
        return torch.embedding(self.weight, words, -1, self.scaled, False)


def words(scaled: bool) -> Subject:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(6, (8, 3), generator=generator)
    labels = torch.randint(0, 2, (8,), generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(Lookup(scaled), nn.Flatten(), nn.Linear(9, 2))
    return Subject(net, [(inputs, labels)], model_step(F.cross_entropy))


def test_a_gradient_that_is_not_the_loss_s_is_found_by_its_asymmetry() -> None:
    check_product(words(False).loss_function())
    with pytest.raises(WrongProductError) as caught:
        check_product(words(True).loss_function())
    text = str(caught.value)
    assert text.startswith("Hessian-vector products are not symmetric (vᵀHw and wᵀHv differ by 0.")
    assert text.endswith(
        " of ‖Hv‖‖w‖), so what this step calls its gradient is not the derivative of its loss and "
        "no rank is given; the suspects are embeddings with scale_grad_by_freq=True. Pass "
        "loss_fn=... that avoids them"
    )


class Bilinear(torch.autograd.Function):
    """A product whose second derivatives are known to one of its factors only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return grad * y, grad * x.detach()


def test_an_asymmetric_custom_function_is_named() -> None:
    def step(net: nn.Module, batch: Any) -> StepResult:
        hidden = net[0](batch[0])
        loss = F.cross_entropy(Bilinear.apply(hidden, net[1](batch[0])), batch[1])
        return StepResult(loss, ())

    with pytest.raises(
        WrongProductError, match=r"not symmetric .*; the suspects are the custom .* Bilinear\. "
    ):
        check_product(
            subject(nn.Sequential(nn.Linear(6, 3), nn.Linear(6, 3)), step).loss_function()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_false_alarm_of_asymmetry_in_any_units(dtype: torch.dtype, scale: float) -> None:
    """Deep, with normalisation and a loss that is all but flat: rounding is all there is."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(x for _ in range(6) for x in (nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh()))
    )
    inputs, labels = torch.randn(8, 6), torch.randint(0, 6, (8,))
    for sharpness in (1e-3, 1.0, 30.0):
        loss = lambda f, y, s=sharpness: scale * F.cross_entropy(s * f, y)  # noqa: E731
        tested = Subject(net, [(inputs, labels)], model_step(loss), dtype=dtype)
        check_product(tested.loss_function())


def test_verified_curvature_is_checked_and_that_of_the_live_weights() -> None:
    right = subject(mlp(nn.Tanh))
    with opened(right) as curvature:
        expected = LossCurvature(right.loss_function()).operator().to_dense()
        assert torch.equal(curvature.operator().to_dense(), expected)
    with pytest.raises(WrongProductError), opened(subject(mlp(Wrong))):
        pytest.fail("a wrong curvature was given")


def test_missing_derivatives_are_named_inside_of_the_context() -> None:
    right = subject(mlp(nn.Tanh))
    text = "derivative for aten::_thing_backward is not implemented"
    with (
        pytest.raises(NoSecondDerivativeError, match=r"^thing has no second derivative"),
        opened(right),
    ):
        raise NotImplementedError(text)


def test_the_check_costs_one_evaluation_a_gradient_and_one_graph() -> None:
    inner = subject(mlp(nn.Tanh)).loss_function()
    alive, most, evaluations = 0, 0, 0

    def counted(term: LossTerm) -> LossTerm:
        def evaluate() -> Evaluation:
            nonlocal alive, most, evaluations
            found = term.evaluate()

            def gone() -> None:
                nonlocal alive
                alive -= 1

            weakref.finalize(found.loss, gone)
            alive, evaluations = alive + 1, evaluations + 1
            most = max(most, alive)
            return found

        return LossTerm(term.weight / 2, evaluate)

    check_product(LossFunction(inner.parameters, [counted(inner.terms[0]) for _ in range(2)]))
    assert evaluations == 2 * (1 + 1)
    assert most <= 2  # the next is made before the last is gone


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
