"""`hessian_rank`: against `torch.func.hessian`, against the closed form, and on bad input."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank import hessian_rank
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import numerical_rank
from tests.oracles import closed_form, dense_hessian
from tests.slow import first

cross_entropy = nn.functional.cross_entropy
mse = nn.functional.mse_loss


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encoder(x)) @ self.encoder.weight


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2)]
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers, nn.Flatten(), nn.Linear(3, 3))


def batch_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model(torch.randn(50, 6) * 2 + 1)  # running statistics unlike the initial ones
    return model.eval()


def frozen() -> nn.Module:
    model = mlp()
    model[2].weight.requires_grad_(False)
    return model


MODELS = {"mlp": (mlp, 6), "cnn": (cnn, 16), "batch_norm": (batch_norm, 6), "frozen": (frozen, 6)}


def classes(n: int, d: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d, dtype=torch.float64), torch.randint(0, 3, (n,))


def curvature(
    model: nn.Module, loss_fn: object, pairs: list[tuple[Tensor, Tensor]]
) -> LossCurvature:
    return LossCurvature(Subject(model, pairs, model_step(loss_fn)).loss_function())


@pytest.mark.parametrize("sizes", [(12,), (7, 1, 4)], ids=["one batch", "ragged batches"])
@pytest.mark.parametrize("name", MODELS)
def test_dense_hessian_is_that_of_torch_func(name: str, sizes: tuple[int, ...]) -> None:
    build, d = MODELS[name]
    model = build().double()
    pairs = [classes(n, d) for n in sizes]
    ours = curvature(model, cross_entropy, pairs).operator("total").to_dense()
    oracle = dense_hessian(model, cross_entropy, pairs)
    assert oracle.norm() > 0
    assert (ours - oracle).norm() <= 1e-10 * oracle.norm()


def test_dense_hessian_of_tied_weights() -> None:
    model = Tied().double()
    x = torch.randn(9, 6, dtype=torch.float64)
    ours = curvature(model, mse, [(x, x)]).operator("total").to_dense()
    oracle = dense_hessian(model, mse, [(x, x)])
    assert (ours - oracle).norm() <= 1e-10 * oracle.norm()


@pytest.mark.parametrize("name", MODELS)
def test_total_is_the_sum_of_its_parts_and_outer_is_gauss_newton(name: str) -> None:
    build, d = MODELS[name]
    model = build().double()
    x, y = classes(11, d)
    parts = curvature(model, cross_entropy, [(x, y)])
    total, outer, functional = (
        parts.operator(p).to_dense() for p in ("total", "outer", "functional")
    )
    assert (total - outer - functional).norm() <= 1e-12 * total.norm()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    jacobian = torch.func.jacrev(lambda state: torch.func.functional_call(model, state, (x,)))(
        {n: dict(model.named_parameters())[n].detach() for n in names}
    )
    J = torch.cat([jacobian[n].flatten(2) for n in names], dim=2)
    probabilities = model(x).detach().softmax(1)
    curvatures = (
        torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    )
    gauss_newton = torch.einsum("nkp,nkl,nlq->pq", J, curvatures, J) / len(x)
    assert (outer - gauss_newton).norm() <= 1e-12 * outer.norm()


def random_chain(rng: random.Random) -> tuple[list[int], int]:
    """Widths with bottlenecks, and a number of samples below or above the input width."""
    widths = [rng.randint(2, 9) for _ in range(rng.randint(3, 5))]
    return widths, rng.choice([rng.randint(2, widths[0]), 40])


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("case", first(2, range(20)))
def test_linear_chains_have_the_ranks_of_the_closed_form(case: int, loss: str) -> None:
    widths, n = random_chain(random.Random(case))
    torch.manual_seed(case)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(n, widths[0], dtype=torch.float64)
    y = torch.randn(n, widths[-1], dtype=torch.float64)
    outputs = widths[-1]
    if loss == "cross_entropy":
        y, outputs = y.softmax(1), outputs - 1
    expected = closed_form(widths, min(n, widths[0]), outputs)
    loss_fn = mse if loss == "mse" else cross_entropy
    found = tuple(
        hessian_rank(model, loss_fn, (x, y), part=part).rank
        for part in ("outer", "functional", "total")
    )
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "expected"), [("mse", 880), ("cross_entropy", 801)])
def test_rank_on_real_digits_is_that_of_the_closed_form(loss: str, expected: int) -> None:
    """The first 600 digits have input rank 58 of 64; K' = 10 and 9."""
    digits = load_digits()
    x = torch.tensor(digits.data[:600] / 16)
    labels = torch.tensor(digits.target[:600])
    model = nn.Sequential(nn.Linear(64, 20, bias=False), nn.Linear(20, 10, bias=False))
    assert numerical_rank(torch.linalg.svdvals(x)).rank == 58
    assert closed_form([64, 20, 10], 58, 10 if loss == "mse" else 9)[2] == expected
    if loss == "mse":
        estimate = hessian_rank(model, mse, (x, nn.functional.one_hot(labels, 10).double()))
    else:
        estimate = hessian_rank(model, cross_entropy, (x, labels))
    assert estimate.rank == expected
    assert estimate.gap is None or estimate.gap > 1e4


def test_result_carries_tolerance_cost_and_spectrum() -> None:
    model, (x, y) = mlp(), classes(8, 6)
    estimate = hessian_rank(model, cross_entropy, (x, y), method="dense")
    p = sum(v.numel() for v in model.parameters())
    assert estimate.num_parameters == p
    assert estimate.eigenvalues is not None
    assert estimate.eigenvalues.shape == (p,)
    assert estimate.rtol == p * torch.finfo(torch.float64).eps
    assert estimate.tolerance == estimate.rtol * float(estimate.eigenvalues.abs().max())
    assert estimate.rank == numerical_rank(estimate.eigenvalues).rank
    assert estimate.rank_at(1e-3) == int(
        (estimate.eigenvalues.abs() > 1e-3 * estimate.eigenvalues.abs().max()).sum()
    )
    assert estimate.std_error == 0.0


def test_the_model_and_the_generators_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = classes(8, 6)
    rng, python = torch.get_rng_state(), random.getstate()
    hessian_rank(model, cross_entropy, data)
    assert torch.equal(rng, torch.get_rng_state())
    assert python == random.getstate()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_training_mode_is_respected_with_randomness_frozen() -> None:
    model, data = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)), classes(8, 6)
    first, second = (hessian_rank(model.train(), cross_entropy, data) for _ in range(2))
    evaluated = hessian_rank(model.eval(), cross_entropy, data)
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert not torch.allclose(first.eigenvalues, evaluated.eigenvalues)


def test_a_list_of_two_pairs_is_not_mistaken_for_a_pair() -> None:
    model, (x, y) = mlp(), classes(10, 6)
    whole = hessian_rank(model, cross_entropy, (x, y))
    pieces = hessian_rank(model, cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])])
    torch.testing.assert_close(whole.eigenvalues, pieces.eigenvalues)


def test_a_loss_that_is_not_finite_gives_nan_and_says_where() -> None:
    model, (x, y) = mlp(), classes(10, 6)
    x[0] = math.nan
    with pytest.warns(RuntimeWarning, match=r"network's output is not finite \(3 of 30 values\)"):
        estimate = hessian_rank(model, cross_entropy, (x, y))
    assert math.isnan(estimate.rank)
    assert math.isnan(estimate.rank_at(1e-3))


def test_inputs_can_be_a_pair() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(inputs[0] + inputs[1])

    torch.manual_seed(0)
    model, (x, y) = Sum(), classes(10, 6)
    pair = hessian_rank(model, cross_entropy, ((x, x), y))
    torch.testing.assert_close(
        pair.eigenvalues, hessian_rank(model.net, cross_entropy, (x + x, y)).eigenvalues
    )


NO_GRADIENTS = (
    "Linear has no parameters that require gradients, so there is no Hessian to measure; "
    "unfreeze some, or remove the monitor"
)


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.detach(), targets)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"part": "hessian"},
            ValueError,
            "part must be one of 'total', 'outer', 'functional', got",
        ),
        ({"rtol": -1.0}, ValueError, "rtol must be a number in [0, 1) (relative to the largest"),
        ({"max_rank": -1}, ValueError, "max_rank must not be negative, got -1"),
        ({"max_rank": 2.0}, TypeError, "max_rank must be a whole number or None, got 2.0"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating torch.dtype, got torch.int"),
        ({"dtype": "float64"}, TypeError, "dtype must be a floating torch.dtype, got 'float64'"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"model": torch.sin}, TypeError, "model must be a torch.nn.Module, got builtin_function"),
        (
            {"loss_fn": 3},
            TypeError,
            "loss_fn must be a function loss_fn(outputs, targets) -> scalar, or the name of a loss "
            "such as 'mse', got 3",
        ),
        ({"loss_fn": "hinge"}, TypeError, "loss 'hinge' is not recognised; pass one of binary_cr"),
        (
            {"data": [[torch.ones(2), torch.ones(2)], [torch.ones(2), torch.ones(2)]]},
            ValueError,
            "data is a list of two lists of two, which may be one pair of two inputs and two "
            "targets or two pairs; pass a tuple (inputs, targets) for one pair, or a list of "
            "tuples [(inputs, targets), ...] for several",
        ),
        ({"data": []}, ValueError, "data has no batches; pass at least one (inputs, targets) pair"),
        ({"data": 3}, TypeError, "data must be an (inputs, targets) pair or an iterable of such"),
        ({"data": [1]}, TypeError, "of such pairs, got an iterable of int"),
        ({"data": (torch.ones(0, 6), torch.ones(0))}, ValueError, "the reference batch is empty;"),
        ({"model": nn.Linear(6, 3).requires_grad_(False)}, ValueError, NO_GRADIENTS),
        (
            {"loss_fn": nn.CrossEntropyLoss(reduction="none")},
            ValueError,
            "returned a loss of shape",
        ),
        ({"loss_fn": lambda o, t: None}, ValueError, "loss_fn returned None, so there is no loss"),
        ({"loss_fn": lambda o, t: 1.0}, TypeError, "must return a tensor or a dict with one, got"),
        ({"loss_fn": detached}, ValueError, "does not depend on any trainable parameter"),
    ],
)
def test_bad_input_is_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"model": mlp(), "loss_fn": cross_entropy, "data": classes(8, 6)} | arguments
    with pytest.raises(error, match=re.escape(message)):
        hessian_rank(**given)
