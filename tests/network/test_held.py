"""What autograd holds fixed is no error: the Hessian is that of the loss with it held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.differences import DifferenceCurvature
from lightning_hessrank.hessian.verify import DETACHED, PADDED, WrongProductError, check_product
from lightning_hessrank.network.held import HeldValues
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject
from tests.oracles import symmetric_rank

Keep = Callable[[Tensor], Any]


class Net(nn.Module):
    """What a step may take out of the graph, it hands to ``keep``; its forward is the loss."""

    def __init__(self, kind: Callable[[Net, Tensor, Tensor, Keep], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 3)
        self.codes = nn.Parameter(torch.randn(5, 3))
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
        return self.kind(self, x, y, keep)


def two_views(net: Net, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
    target = keep(net.encoder(x + 0.1))
    return -F.cosine_similarity(net.head(net.encoder(x)), target).mean()


def pseudo_labels(net: Net, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
    return F.mse_loss(net.head(net.encoder(x)), keep(net.head(net.encoder(x + 0.1))))


def hard_examples(net: Net, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
    each = F.cross_entropy(net.head(net.encoder(x)), y, reduction="none")
    return ((1 - torch.exp(-keep(each))) * each).mean()


def quantised(net: Net, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
    z = net.encoder(x)
    code = net.codes[(keep(z)[:, None] - keep(net.codes)).square().sum(2).argmin(1)]
    through = z + keep(code - z)
    commitment = F.mse_loss(code, keep(z)) + 0.25 * F.mse_loss(z, keep(code))
    return F.cross_entropy(net.head(through), y) + commitment


def semi_gradient(net: Net, x: Tensor, y: Tensor, keep: Keep) -> Tensor:
    value, following = (net.head(net.encoder(t)).square().sum(1) for t in (x, x.roll(1, 0)))
    return F.smooth_l1_loss(value, y + 0.9 * keep(following))


KINDS = [two_views, pseudo_labels, hard_examples, quantised, semi_gradient]


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1


def a_number(x: Tensor) -> Any:
    return x.item() if x.numel() == 1 else x.data.clone()


def subject_of(net: nn.Module, step: Callable[..., Any], batch: Any) -> Subject:
    return Subject(net, [batch], module_step(net, step))


@pytest.mark.parametrize(
    ("kind", "keep"),
    [(kind, keep) for kind in KINDS for keep in (Tensor.detach, without_gradient, a_number)],
)
@pytest.mark.usefixtures("double_precision")
def test_what_is_detached_is_held(kind: Callable[..., Tensor], keep: Keep) -> None:
    net, x, y = Net(kind), torch.randn(12, 3), torch.randint(0, 3, (12,))
    subject = subject_of(net, lambda module, b: module(*b, keep), (x, y))
    assert check_product(subject.loss_function()) == (DETACHED,)
    constants: list[Tensor] = []
    net(x, y, lambda v: constants.append(v.detach()) or v.detach())
    named = {n: p.detach() for n, p in net.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        values = {n: v.view_as(p) for v, (n, p) in zip(pieces, named.items(), strict=True)}
        replayed = iter(constants)
        return functional_call(net, values, (x, y, lambda _: next(replayed)))

    expected = hessian(loss)(torch.cat([p.flatten() for p in named.values()]))
    found = LossCurvature(subject.loss_function()).operator().to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("write", [torch._foreach_mul_, lambda a, b: [a[0].mul_(b[0])]])
@pytest.mark.usefixtures("double_precision")
def test_what_is_written_from_parameters_is_held(write: Callable[..., Any]) -> None:
    """Scales of the codes, of two steps back, in a list that is written in place."""
    net, x = Net(two_views), torch.randn(12, 3)

    def step(module: Net, batch: Tensor) -> Tensor:
        with torch.no_grad():
            scales = [torch.ones_like(module.codes)]
            write(scales, [module.codes])
        return (module.encoder(batch) @ (scales[0] * module.codes).T).square().mean()

    loss = subject_of(net, step, x).loss_function()
    assert check_product(loss) == (DETACHED,)
    held = net.codes.detach().clone()
    named = {n: p.detach() for n, p in net.named_parameters()}

    def fixed(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        values = {n: v.view_as(p) for v, (n, p) in zip(pieces, named.items(), strict=True)}
        inner = {n[8:]: v for n, v in values.items() if n.startswith("encoder.")}
        z = functional_call(net.encoder, inner, (x,))
        return (z @ (held * values["codes"]).T).square().mean()

    expected = hessian(fixed)(torch.cat([p.flatten() for p in named.values()]))
    found = LossCurvature(loss).operator().to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_what_is_written_by_keyword_alone_is_held() -> None:
    weight = nn.Parameter(torch.tensor([-1.0, 2.0]))
    held = HeldValues()
    with held:
        first = torch.relu_(input=weight.detach())
    held.recording = False
    with held, torch.no_grad():
        weight.copy_(torch.tensor([3.0, 4.0]))
        second = torch.relu_(input=weight.detach())
    assert first.tolist() == second.tolist() == [0.0, 2.0]


def test_prototypes_normalised_in_place_are_written_once() -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rows = nn.Linear(3, 4), nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.rows.div_(self.rows.norm(dim=1, keepdim=True))
            return torch.tanh(self.body(x)) @ self.rows.T

    def step(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    batch = torch.randn(12, 3), torch.randint(0, 5, (12,))
    assert check_product(subject_of(Prototypes(), step, batch).loss_function()) == ()


@pytest.mark.usefixtures("double_precision")
def test_rows_without_a_gradient_are_held() -> None:
    class Text(nn.Module):
        def __init__(self, padding_idx: int | None) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.words = nn.Embedding(7, 3, padding_idx=padding_idx)
            with torch.no_grad():
                self.words.weight[0] = 0.3  # its values are read all the same
            self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids).mean(1))

    ids = torch.randint(0, 7, (20, 4))
    batch = ids, torch.randint(0, 2, (20,))

    def step(net: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(net(b[0]), b[1])

    padded, plain = (subject_of(Text(index), step, batch) for index in (0, None))
    assert check_product(plain.loss_function()) == ()
    assert check_product(padded.loss_function()) == (PADDED,)
    found, whole = (LossCurvature(s.loss_function()).operator().to_dense() for s in (padded, plain))
    expected = whole.clone()
    expected[:3] = expected[:, :3] = 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert symmetric_rank(found) < symmetric_rank(whole)


class Tied(nn.Module):
    """A decoder with the weight of the embedding, whose padding has a gradient there alone."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(7, 3, padding_idx=padding_idx)
        with torch.no_grad():
            self.words.weight[-2] = 0.3
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def decoded(self, looked_up: Tensor) -> Tensor:
        return self.body(looked_up.mean(1)) @ self.words.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoded(self.words(ids))


class Detached(Tied):
    """The same with a stop-gradient written out in the place of the padding."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, ids: Tensor) -> Tensor:
        looked_up = self.words(ids)
        padding = (ids == 5).unsqueeze(-1)
        return self.decoded(torch.where(padding, looked_up.detach(), looked_up))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("padding_idx", [5, -2])
def test_padding_of_a_tied_embedding_is_held_where_it_is_looked_up(padding_idx: int) -> None:
    ids = torch.randint(0, 7, (20, 4))
    assert bool((ids == 5).any())
    batch = ids, torch.randint(0, 7, (20,))

    def step(net: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(net(b[0]), b[1])

    def confident(net: nn.Module, b: Any) -> Tensor:
        logits = net(b[0])
        return F.cross_entropy(logits * logits.detach(), b[1])

    tied = subject_of(Tied(padding_idx), step, batch)
    assert check_product(tied.loss_function()) == (PADDED,)
    assert check_product(subject_of(Tied(padding_idx), confident, batch).loss_function()) == (
        *(PADDED, DETACHED),
    )
    assert check_product(subject_of(Tied(None), step, batch).loss_function()) == ()
    assert check_product(subject_of(Tied(None), confident, batch).loss_function()) == (DETACHED,)
    found = LossCurvature(tied.loss_function()).operator().to_dense()
    expected = LossCurvature(subject_of(Detached(), step, batch).loss_function())
    torch.testing.assert_close(found, expected.operator().to_dense(), rtol=1e-10, atol=1e-13)
    differences = DifferenceCurvature(tied.loss_function()).operator().to_dense()
    torch.testing.assert_close(differences, found, rtol=0, atol=1e-6 * float(found.abs().max()))


class Lost(torch.autograd.Function):
    """A right gradient, the derivative of which is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3 * ctx.saved_tensors[0].detach() ** 2


def test_the_guilty_are_found_beside_what_is_detached() -> None:
    def step(net: nn.Module, batch: Any) -> Tensor:
        f = Lost.apply(net(batch[0]))
        return F.mse_loss(f, batch[1] + 0.1 * f.detach())

    batch = torch.randn(12, 3), torch.randn(12, 2)
    with pytest.raises(WrongProductError, match="custom autograd functions Lost"):
        check_product(subject_of(nn.Linear(3, 2), step, batch).loss_function())


def test_a_step_that_is_another_each_time_is_said_to_be() -> None:
    times = []

    def step(net: nn.Module, batch: Any) -> Tensor:
        times.append(1)
        return len(times) * F.mse_loss(net(batch[0]), batch[1])

    batch = torch.randn(12, 3), torch.randn(12, 2)
    with pytest.raises(WrongProductError, match="another gradient every time"):
        check_product(subject_of(nn.Linear(3, 2), step, batch).loss_function())
