"""Outputs that nothing but the graph tells: the parts by them, or none and a true reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.measure import measure
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject

Step = Callable[[Any, Any], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def squares(net: Net, b: Any, f: Tensor) -> Tensor:
    return (f - b[1]).square().mean()


def with_a_metric(net: Net, b: Any, f: Tensor) -> Tensor:
    F.l1_loss(f, b[1])  # logged only
    return (f - b[1]).square().mean()


def two_terms(net: Net, b: Any, f: Tensor) -> Tensor:
    p, y = f.softmax(1), b[1].softmax(1)
    return F.cross_entropy(f, y) + 1 - 2 * (p * y).sum() / (p.sum() + y.sum())


def quantiles(net: Net, b: Any, f: Tensor) -> Tensor:
    error = b[1] - f
    return torch.maximum(0.1 * error, -0.9 * error).mean() + error.square().mean()


def weighted_by_a_metric(net: Net, b: Any, f: Tensor) -> Tensor:
    return (f - b[1]).square().mean() + 0.1 * F.mse_loss(f[:, :1], b[1][:, :1])


@pytest.mark.parametrize(
    "loss", [squares, with_a_metric, two_terms, quantiles, weighted_by_a_metric]
)
def test_the_parts_are_those_by_the_named_output(loss: Callable[..., Tensor]) -> None:
    net, batch = Net(), (torch.randn(12, 4), torch.randn(12, 3))

    def unnamed(module: Net, b: Any) -> Tensor:
        return loss(module, b, module(b[0]))

    def named(module: Net, b: Any) -> dict[str, Tensor]:
        f = module(b[0])
        return {"loss": loss(module, b, f), "output": f}

    subjects = [Subject(net, [batch], module_step(net, s)) for s in (unnamed, named)]
    bounds = [reference_bound(s).total for s in subjects]
    assert bounds[0] == bounds[1]
    one, two = (LossCurvature(s.loss_function()) for s in subjects)
    for part in ("outer", "functional"):
        expected = two.operator(part).to_dense()
        torch.testing.assert_close(one.operator(part).to_dense(), expected, atol=1e-13, rtol=0)


class Autoencoder(nn.Module):
    """The loss sees latent mean and variance, and what is decoded from them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.mean, self.variance = nn.Linear(3, 2), nn.Linear(3, 2)
        self.decode = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x)
        mean, variance = self.mean(h), self.variance(h)
        return self.decode(mean + (variance / 2).exp() * noise), mean, variance


def evidence(x: Tensor, decoded: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    divergence = mean.square() + variance.exp() - 1 - variance
    return (decoded - x).square().sum(1).mean() + 0.5 * divergence.sum(1).mean()


@pytest.mark.usefixtures("double_precision")
def test_outputs_that_are_computed_from_each_other() -> None:
    net, x, noise = Autoencoder(), torch.randn(6, 4), torch.randn(6, 2)
    step = module_step(net, lambda m, b: evidence(b[0], *m.forward(*b)))
    subject = Subject(net, [(x, noise)], step)
    curvature = LossCurvature(subject.loss_function())
    assert [len(o.tensor) for o in subject.evaluate(subject.batches[0]).outputs] == [6] * 3
    named = {n: p.detach() for n, p in net.named_parameters()}

    def outputs(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        values = {n: v.view_as(p) for v, (n, p) in zip(pieces, named.items(), strict=True)}
        return torch.cat([f.flatten() for f in functional_call(net, values, (x, noise))])

    def loss(f: Tensor) -> Tensor:
        decoded, mean, variance = f.split([24, 12, 12])
        return evidence(x, decoded.view(6, 4), mean.view(6, 2), variance.view(6, 2))

    theta = torch.cat([p.flatten() for p in named.values()])
    J, S = jacrev(outputs)(theta), hessian(loss)(outputs(theta))
    total = hessian(lambda t: loss(outputs(t)))(theta)
    for part, expected in (("total", total), ("outer", J.T @ S @ J)):
        found = curvature.operator(part).to_dense()
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    functional = curvature.operator("functional").to_dense()
    torch.testing.assert_close(functional, total - J.T @ S @ J, atol=1e-10, rtol=1e-10)


class Judging(Net):
    """Returns a loss for each sample beside its outputs, in either order."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        f = self.body(x)
        return f if y is None else (f, (f - y).square().sum(1))[:: self.order]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("share", [torch.ones(12), torch.arange(12.0)])
def test_terms_of_the_loss_are_no_outputs(order: int, share: Tensor) -> None:
    net, batch = Judging(order), (torch.randn(12, 4), torch.randn(12, 3))

    def judged(module: Judging, b: Any) -> Tensor:
        (terms,) = (x for x in module(*b) if x.ndim == 1)
        return (share.to(terms) * terms).mean()

    def plain(module: Judging, b: Any) -> Any:
        f = module(b[0])
        return {"loss": (share.to(f) * (f - b[1]).square().sum(1)).mean(), "output": f}

    found, expected = (
        measure(Subject(net, [batch], module_step(net, step))).parts for step in (judged, plain)
    )
    assert found["outer"].rank == expected["outer"].rank > 0
    assert found["functional"].rank == expected["functional"].rank


def test_one_number_a_sample_can_be_an_output() -> None:
    class Regression(Net):
        def forward(self, x: Tensor) -> Any:
            f = self.body(x)
            return f, f.sum(1)

    net, batch = Regression(), (torch.randn(12, 4), torch.randn(12))
    step = module_step(net, lambda m, b: (m(b[0])[1] - b[1]).square().mean())
    (output,) = Subject(net, [batch], step).evaluate(batch).outputs
    assert output.tensor.shape == (12,)


def functional_code(net: Net, b: Any) -> Tensor:
    return (b[0] @ net.body[0].weight.T).pow(4).mean()


def beside_a_penalty(net: Net, b: Any) -> Tensor:
    return (net(b[0]) - b[1]).square().mean() + 1e-2 * net.body[0].weight.square().sum()


@pytest.mark.parametrize("step", [functional_code, beside_a_penalty])
def test_no_guess_where_parameters_go_past_it(step: Step) -> None:
    net = Net()
    subject = Subject(net, [(torch.randn(12, 4), torch.randn(12, 3))], module_step(net, step))
    assert list(measure(subject).parts) == ["total"]


@pytest.mark.parametrize("penalty", [F.mse_loss, lambda a, b: (a - b).square().mean()])
def test_a_penalty_is_no_output_whatever_it_is_written_with(penalty: Callable[..., Any]) -> None:
    net = Net()

    def step(module: Net, b: Any) -> Tensor:
        gram = module.body[0].weight @ module.body[0].weight.T
        return F.mse_loss(module(b[0]), b[1]) + 0.1 * penalty(gram, torch.eye(5).to(gram))

    subject = Subject(net, [(torch.randn(12, 4), torch.randn(12, 3))], module_step(net, step))
    (output,) = subject.evaluate(subject.batches[0]).outputs
    assert output.tensor.shape == (12, 3)
    assert measure(subject).unexplained > 1e-6


def test_hooks_are_gone_afterwards() -> None:
    net = Net()
    subject = Subject(
        net, [(torch.randn(2, 4), torch.randn(2, 3))], module_step(net, functional_code)
    )
    subject.evaluate(subject.batches[0])
    assert not any(part._forward_hooks for part in subject.shadow.modules())
