"""The factor of the outer part: the same eigenvalues, and no belief without a check."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.gram import outer_factor, outer_pairs
from tests.networks import CASES, Problem


@pytest.mark.parametrize("name", ["mlp", "mse", "cnn", "linear"])
def test_factor_reproduces_the_outer_part(name: str) -> None:
    problem = Problem(name, sizes=(2, 3))
    curvature = LossCurvature(problem.function())
    indices = tuple(range(len(curvature.names)))
    factor = outer_factor(curvature, indices)
    assert factor is not None
    outputs = 2 if problem.loss is F.cross_entropy else 3  # softmax: one output is redundant
    assert factor.shape == (5 * outputs, curvature.num_parameters)
    torch.testing.assert_close(factor.T @ factor, problem.oracle()["outer"], rtol=0, atol=1e-13)
    gram = curvature.operator("outer").smaller_matrix()
    torch.testing.assert_close(gram, factor @ factor.T, rtol=0, atol=1e-15)
    assert curvature.operator("outer").smaller_matrix(than=len(gram)) is None


def test_factor_of_a_block() -> None:
    problem = Problem("cnn", sizes=(2, 3))
    curvature = LossCurvature(problem.function())
    factor = outer_factor(curvature, (2, 3))
    outer = problem.oracle()["outer"][30:56, 30:56]
    torch.testing.assert_close(factor.T @ factor, outer, rtol=0, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_factor_of_convolutions(stride, padding, dilation) -> None:
    problem = Problem("cnn", sizes=(3,))
    conv = nn.Conv2d(1, 2, 2, stride=stride, padding=padding, dilation=dilation).double()
    problem.net = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    problem.net(problem.data[0][0])
    problem.parameters = dict(problem.net.named_parameters())
    factor = outer_factor(LossCurvature(problem.function()), (0, 1, 2, 3))
    torch.testing.assert_close(factor.T @ factor, problem.oracle()["outer"], rtol=0, atol=1e-13)


class Mixing(nn.Module):
    """Samples that interact."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.second(h - h.mean(0))


def indefinite(f, y):
    return (f[:, 0] * f[:, 1]).mean()


def all_of(curvature: LossCurvature) -> tuple[int, ...]:
    return tuple(range(len(curvature.names)))


def mixing() -> Problem:
    problem = Problem("mlp", sizes=(5,))
    problem.net = Mixing().double()
    problem.parameters = dict(problem.net.named_parameters())
    return problem


def test_no_gram_matrix_where_there_is_no_real_factor_or_no_use() -> None:
    problem = Problem("mlp", sizes=(2, 3))
    problem.loss = indefinite
    assert LossCurvature(problem.function()).operator("outer").smaller_matrix() is None
    problem = Problem("mlp", sizes=(40,))
    assert LossCurvature(problem.function()).operator("outer").smaller_matrix() is None


def contrastive(f, y):
    return F.cross_entropy(f @ f.T, torch.arange(len(f)))


def test_no_gram_matrix_where_the_loss_couples_samples() -> None:
    problem = Problem("mlp", sizes=(5,))
    problem.loss = contrastive
    assert LossCurvature(problem.function()).operator("outer").smaller_matrix() is None


def test_layers_that_own_all_and_are_wrong_are_noticed() -> None:
    problem = mixing()
    curvature = LossCurvature(problem.function())
    factor, outer = outer_factor(curvature, all_of(curvature)), problem.oracle()["outer"]
    assert factor is not None
    assert float((factor.T @ factor - outer).abs().max()) > 1e-3
    assert_spectrum(problem)


@pytest.mark.parametrize("room", [None, 10_000, 100])
@pytest.mark.parametrize("name", [*CASES, "mixing"])
def test_gram_matrix_has_the_spectrum_of_any_network(name: str, room: int | None) -> None:
    """Whether its parameters are layers' or not, and whether the factor fits into memory or not."""
    problem = mixing() if name == "mixing" else Problem(name, sizes=(2, 3))
    assert_spectrum(problem, room)


def assert_spectrum(problem: Problem, room: int | None = None) -> None:
    curvature = LossCurvature(problem.function(), max_bytes=room)
    calls: list[tuple[int, int]] = []
    operator = curvature.operator("outer")
    gram = operator.smaller_matrix(progress=lambda *x: calls.append(x))
    outer = torch.linalg.eigvalsh(problem.oracle()["outer"])
    assert len(gram) < operator.dim
    found = torch.linalg.eigvalsh(gram)
    scale = float(outer.max())
    torch.testing.assert_close(found, outer[-len(gram) :], rtol=0, atol=1e-13 * scale)
    assert float(outer[: -len(gram)].abs().max()) < 1e-13 * scale
    assert not calls or calls[-1] == (len(gram), len(gram))


def test_no_row_of_a_weight_that_is_too_large_for_memory_is_formed() -> None:
    problem = Problem("mlp", sizes=(2, 3))
    whole, small = LossCurvature(problem.function()), LossCurvature(problem.function(), max_bytes=1)
    factor = outer_factor(whole, all_of(whole))
    assert factor is not None
    grams = []
    for index, weight in enumerate(small.parameters):
        columns = factor[:, : weight.numel()]
        factor = factor[:, weight.numel() :]
        pairs = outer_pairs(small, index)
        assert (pairs is not None) is (weight.ndim == 2)
        if pairs is not None:
            grams.append((pairs[0] @ pairs[0].T) * (pairs[1] @ pairs[1].T))
            torch.testing.assert_close(grams[-1], columns @ columns.T, rtol=0, atol=1e-14)
    assert len(grams) >= 2


def test_which_cases_have_a_factor_from_layers() -> None:
    found = set()
    for name in CASES:
        problem = Problem(name, sizes=(2, 3))
        curvature = LossCurvature(problem.function())
        factor = outer_factor(curvature, all_of(curvature))
        if factor is not None:
            found.add(name)
            outer = problem.oracle()["outer"]
            torch.testing.assert_close(factor.T @ factor, outer, rtol=0, atol=1e-13)
    assert found == {"mlp", "mse", "cnn", "linear", "frozen"}


def test_right_gram_matrices_are_taken_and_wrong_ones_dropped() -> None:
    """An error that the rank can see, in one number of the matrix."""
    problem = Problem("mlp", sizes=(2, 3))
    operator = LossCurvature(problem.function()).operator("outer")
    right = operator.smaller_matrix()
    module = "lightning_hessrank.hessian.gram"
    for error, taken in ((1e-17, True), (1e-12, False)):
        wrong = right.clone()
        wrong[0, 0] += error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{module}._from_layers", lambda _, wrong=wrong: wrong)
            patch.setattr(f"{module}._from_products", lambda *_, wrong=wrong: wrong)
            assert (operator.smaller_matrix() is not None) is taken
