"""The batch bound: a theorem for every activation, loss and layer, against dense Hessians."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_hessrank.api import batch_bound
from lightning_hessrank.results import NonFiniteError
from tests.oracles import exact_rank, exact_ranks
from tests.slow import first

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "linear": nn.Identity}


class Residual(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.activation(self.one(x)))


class Tied(nn.Module):
    """The same weight twice, once transposed, and a functional call in between."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(d, 4), nn.Linear(d, k)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).tanh()
        return self.head(functional.linear(z, self.encoder.weight.t()).tanh())


class Attention(nn.Module):
    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(d, 3 * d), nn.Linear(2 * d, k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(torch.stack([x, x.roll(1, dims=1)], dim=1)).chunk(3, dim=2)
        weights = (q @ k.transpose(1, 2)).softmax(2)
        return self.head((weights @ v).flatten(1))


class Nonlinear(nn.Module):
    """A parameter that enters through a sine, next to ordinary layers."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(d))
        self.one, self.two = nn.Linear(d, 5), nn.Linear(5, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(torch.sin(self.frequency) * x).tanh())


def network(draw: random.Random, d: int, k: int) -> nn.Module:
    """A small network on vectors of length ``d``."""
    act = ACTIVATIONS[draw.choice(list(ACTIVATIONS))]
    bias = draw.random() < 0.5
    width = draw.randint(2, 7)
    kind = draw.choice(["mlp", "residual", "norms", "conv", "conv2", "tied", "attention", "sine"])
    if kind == "mlp":
        hidden = draw.randint(2, 7)
        return nn.Sequential(
            nn.Linear(d, width, bias=bias), act(), nn.Linear(width, hidden), act(),
            nn.Linear(hidden, k, bias=bias),
        )  # fmt: skip
    if kind == "residual":
        return nn.Sequential(nn.Linear(d, width), Residual(width, act), nn.Linear(width, k))
    if kind == "norms":
        norm = draw.choice([nn.LayerNorm, nn.BatchNorm1d])
        return nn.Sequential(
            nn.Linear(d, width, bias=bias), norm(width), act(), nn.Linear(width, k)
        )
    if kind == "conv":
        c = 2 * draw.randint(1, 2)
        return nn.Sequential(
            nn.Unflatten(1, (1, d)),
            nn.Conv1d(1, c, 3, padding=1, bias=bias),
            act(),
            nn.Conv1d(c, 4, 2, stride=draw.randint(1, 2), groups=draw.randint(1, 2), bias=bias),
            nn.AdaptiveMaxPool1d(2),
            nn.Flatten(),
            nn.Linear(8, k),
        )
    if kind == "conv2":
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, d // 2)),
            nn.ConvTranspose2d(1, 2, 2, stride=2, bias=bias),
            act(),
            nn.Conv2d(2, 3, (2, 3), bias=bias),
            nn.Flatten(),
            nn.Linear(3 * 3 * (2 * (d // 2) - 2), k, bias=False),
        )
    return {"tied": Tied, "attention": Attention, "sine": Nonlinear}[kind](d, k)


def coupling_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that couples the samples of a batch."""
    return ((outputs @ outputs.T) - (targets @ targets.T)).square().mean()


@pytest.mark.parametrize("seed", first(20, range(120)))
def test_it_is_never_below_the_exact_rank(seed: int) -> None:
    draw = random.Random(seed)
    d, k, count = 4, draw.randint(2, 4), draw.randint(2, 9)
    model = network(draw, d, k).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    x, loss = torch.randn(count, d), draw.choice(["mse", "cross_entropy", "coupling"])
    loss_fn = {
        "mse": functional.mse_loss,
        "cross_entropy": functional.cross_entropy,
        "coupling": coupling_loss,
    }[loss]
    y = torch.randint(0, k, (count,)) if loss == "cross_entropy" else torch.randn(count, k)
    bound = batch_bound(model, loss_fn, (x, y))
    assert bound.is_theorem
    exact = exact_ranks(model, x, loss_fn, y)
    assert bound.total >= exact["total"]
    assert bound.outer >= exact["outer"]
    assert bound.functional >= exact["functional"]
    # The same samples in two batches of unequal size have the same bound.
    if loss == "mse" and not any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        halves = [(x[:1], y[:1]), (x[1:], y[1:])]
        assert batch_bound(model, loss_fn, halves).total == bound.total


@pytest.mark.parametrize(("count", "total"), [(2, 86), (4, 150), (6, 198), (12, 294)])
def test_it_is_exact_for_a_smooth_network(count: int, total: int) -> None:
    layers = [nn.Linear(a, b, bias=False) for a, b in ((16, 12), (12, 10), (10, 3))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    x, y = torch.randn(count, 16), torch.randn(count, 3)
    assert batch_bound(model, functional.mse_loss, (x, y)).total == total
    if count < 6:
        assert exact_rank(model, functional.mse_loss, x, y) == total


@pytest.mark.parametrize(("count", "total"), [(1, 139), (2, 186), (4, 234)])
def test_it_is_exact_for_a_smooth_convolutional_network(count: int, total: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False),
        nn.Tanh(),
        nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 3, bias=False),
    )
    x, y = torch.randn(count, 1, 6, 6), torch.randint(0, 3, (count,))
    assert batch_bound(model, functional.cross_entropy, (x, y)).total == total
    if count == 1:
        assert exact_rank(model, functional.cross_entropy, x, y) == total


def test_places_that_nothing_reads_do_not_count() -> None:
    """The strided kernel skips the last row and column; its patches do not overlap."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 2, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(20, 3),
    )  # fmt: skip
    x, y = torch.randn(1, 2, 7, 7), torch.randn(1, 3)
    bound = batch_bound(model, functional.mse_loss, (x, y))
    found = {"total": bound.total, "outer": bound.outer, "functional": bound.functional}
    assert found == {"total": 159, "outer": 3, "functional": 156}
    assert found == exact_ranks(model, x, functional.mse_loss, y)


def test_units_that_are_off_do_not_count() -> None:
    layers = [nn.Linear(a, b, bias=False) for a, b in ((16, 12), (12, 10), (10, 3))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x, y = torch.randn(2, 16), torch.randn(2, 3)
    bound = batch_bound(model, functional.mse_loss, (x, y))
    exact = exact_ranks(model, x, functional.mse_loss, y)
    assert {part: getattr(bound, part) for part in exact} == exact
    assert bound.total < 86  # of the same network with tanh
    alive = model[:4](x) > 0  # each sample has a signal of its own for every unit that is on
    assert bound.layers[2].functional == int(alive.sum())


def test_a_kernel_as_wide_as_its_stride_is_a_linear_layer_on_patches() -> None:
    embed = nn.Conv1d(2, 3, 4, stride=4)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Tanh(), embed, nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    )
    as_linear = nn.Sequential(
        nn.Linear(8, 8), nn.Tanh(), nn.Unflatten(2, (2, 4)), Swap(), nn.Flatten(2),
        nn.Linear(8, 3), nn.Tanh(), Swap(), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    as_linear[5].weight.data = embed.weight.data.flatten(1)
    for theirs, ours in (("0", "0"), ("9", "5")):
        as_linear[int(theirs)].load_state_dict(model[int(ours)].state_dict())
    as_linear[5].bias.data = embed.bias.data
    x, y = torch.randn(2, 2, 8), torch.randn(2, 2)
    assert torch.allclose(model(x), as_linear(x))
    one, two = (batch_bound(net, functional.mse_loss, (x, y)) for net in (model, as_linear))
    assert (one.total, one.outer, one.functional) == (two.total, two.outer, two.functional)


class Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_a_loss_that_is_flat_in_the_output_has_no_outer_part() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = torch.randn(3, 4), torch.randn(3, 2)
    bound = batch_bound(model, functional.l1_loss, (x, y))
    assert bound.outer == 0
    assert bound.functional == bound.total >= exact_rank(model, functional.l1_loss, x, y)


class Beside(nn.Module):
    """A narrow layer with a way past it, or none."""

    def __init__(self, *, past: bool) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(6, 2), nn.Linear(2, 5)
        self.other = nn.Linear(6, 5) if past else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.wide(self.narrow(x).tanh())
        return z if self.other is None else z + self.other(x).tanh()


@pytest.mark.parametrize("loss", ["mse_loss", "cross_entropy"])
def test_a_narrow_layer_lets_no_more_pass(loss: str) -> None:
    """Two numbers of each of 9 samples, and beside them a map of 2 + 1 inputs to what is left."""
    x = torch.randn(9, 6)
    y = torch.randn(9, 5) if loss == "mse_loss" else torch.randint(5, (9,))
    outer = 2 * 9 + ((5 if loss == "mse_loss" else 4) - 2) * 3
    of_loss = getattr(functional, loss)
    model = Beside(past=False)
    assert batch_bound(model, loss, (x, y)).outer == outer
    assert exact_ranks(model, x, of_loss, y)["outer"] == outer
    # the batches are joined: the map of the inputs is the same for all
    assert batch_bound(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])]).outer == outer
    around = Beside(past=True)
    exact = exact_ranks(around, x, of_loss, y)["outer"]
    assert batch_bound(around, loss, (x, y)).outer >= exact > outer


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy_with_logits"])
def test_outputs_of_which_a_loss_is_certain_count(loss: str) -> None:
    """Their curvature is far below rounding of that of others, but not zero."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    model[4].weight.data *= 100
    x = torch.randn(5, 6)
    y = torch.randint(3, (5,)) if loss == "cross_entropy" else torch.rand(5, 3)
    bound = batch_bound(model, loss, (x, y))
    outputs = model(x).detach().requires_grad_()
    curvature = torch.autograd.functional.hessian(
        lambda f: getattr(functional, loss)(f, y), outputs
    ).reshape(15, 15)
    assert torch.linalg.matrix_rank(curvature) < bound.outer
    assert bound.outer == 5 * (2 if loss == "cross_entropy" else 3)
    if loss == "cross_entropy":
        assert bound.outer == exact_ranks(model, x, functional.cross_entropy, y)["outer"]


def test_what_is_counted_in_full_is_said() -> None:
    bound = batch_bound(
        Nonlinear(4, 2), functional.mse_loss, (torch.randn(3, 4), torch.randn(3, 2))
    )
    assert bound.reason == (
        "Holds for the network itself, at these weights and on these samples; counted in full, "
        "since not linear maps of an activation: frequency."
    )


class Shown(nn.Linear):
    """Shows the weight that it last used to whoever looks, the copy's own included."""

    seen: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen[:] = [self.weight]
        return super().forward(x)


def test_a_weight_penalty_counts_every_parameter_that_it_sees() -> None:
    model = Shown(6, 2, bias=False)

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        (weight,) = Shown.seen
        return functional.mse_loss(outputs, targets) + 1e-4 * weight.square().sum()

    bound = batch_bound(model, penalised, (torch.randn(1, 6), torch.randn(1, 2)))
    assert bound.total == bound.num_parameters == 12


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)).float()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    data = (torch.randn(3, 4), torch.zeros(3, 2))
    rng = torch.get_rng_state()
    batch_bound(model, functional.mse_loss, data)
    assert torch.equal(rng, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_errors_say_what_is_wrong() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="no gradient flows") as caught:
        batch_bound(model, lambda f, y: y.sum(), (torch.ones(1, 2), torch.ones(1, 1)))
    assert str(caught.value) == (
        "the loss of loss_fn does not depend on any trainable parameter (no gradient flows); look "
        "for .detach(), torch.no_grad() or frozen parameters"
    )
    with pytest.raises(ValueError, match=r"^data has no batches; pass at least one \(inputs, targ"):
        batch_bound(model, functional.mse_loss, [])
    with pytest.raises(TypeError, match=r"data must be an \(inputs, targets\) pair or an iterable"):
        batch_bound(model, functional.mse_loss, 3)
    with pytest.raises(ValueError, match="the network has no trainable parameters, so there is no"):
        batch_bound(model.requires_grad_(False), functional.mse_loss, [])


@pytest.mark.parametrize(
    "where", ["data", "later data", "weight", "loss", "derivative of the loss"]
)
def test_what_is_not_finite_is_said_with_its_layer(where: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = torch.randn(3, 4), torch.zeros(3, 2)
    loss_fn: Callable[..., Tensor] = functional.mse_loss
    if where == "data":
        x[1, 2] = torch.nan
        message = "the input of layer '0' is not finite (1 of 12 values)"
    elif where == "later data":
        message = "the input of layer '0' is not finite (4 of 4 values)"
    elif where == "weight":
        model[0].weight.data[3] = torch.nan
        message = "the input of layer '2' is not finite (3 of 15 values)"
    elif where == "loss":
        message = "the loss is not finite (nan): look at the data"
        loss_fn = lambda f, y: functional.mse_loss(f, y) + torch.tensor(torch.nan)  # noqa: E731
    else:
        message = "the gradient at the output of layer '2' is not finite (6 of 6 values)"
        loss_fn = lambda f, y: (f - f.detach()).abs().sqrt().sum()  # noqa: E731
    data = [(x, y), (torch.full((1, 4), torch.inf), y[:1])] if where == "later data" else (x, y)
    with pytest.raises(NonFiniteError) as caught:
        batch_bound(model, loss_fn, data)
    ending = "" if where == "loss" else ": look at the weights and the data"
    assert str(caught.value) == message + ending
