"""The factor of the outer part: the same eigenvalues, and no belief without a check."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.hessian import LossCurvature
from tests.networks import CASES, Problem


@pytest.mark.parametrize("name", ["mlp", "mse", "cnn", "linear"])
def test_factor_reproduces_the_outer_part(name: str) -> None:
    problem = Problem(name, sizes=(2, 3))
    curvature = LossCurvature(problem.function())
    indices = tuple(range(len(curvature.names)))
    factor = curvature.outer_factor(indices, 99)
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
    factor = curvature.outer_factor((2, 3), 26)
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
    factor = LossCurvature(problem.function()).outer_factor((0, 1, 2, 3), 99)
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


@pytest.mark.parametrize(
    "why", ["samples interact", "not a layer", "∇²ℓ indefinite", "not smaller"]
)
def test_no_factor_where_it_would_be_wrong_or_no_use(why: str) -> None:
    problem = Problem({"not a layer": "batch norm"}.get(why, "mlp"), sizes=(2, 3))
    if why == "samples interact":
        problem.net = Mixing().double()
        problem.parameters = dict(problem.net.named_parameters())
    if why == "∇²ℓ indefinite":
        problem.loss = indefinite
    if why == "not smaller":
        problem = Problem("mlp", sizes=(40,))
    curvature = LossCurvature(problem.function())
    assert (
        curvature.outer_factor(tuple(range(len(curvature.names))), curvature.num_parameters) is None
    )
    assert curvature.operator("outer").smaller_matrix() is None


def test_every_case_with_a_factor_agrees_and_some_have_none() -> None:
    found = set()
    for name in CASES:
        problem = Problem(name, sizes=(2, 3))
        curvature = LossCurvature(problem.function())
        factor = curvature.outer_factor(
            tuple(range(len(curvature.names))), curvature.num_parameters
        )
        if factor is not None:
            found.add(name)
            outer = problem.oracle()["outer"]
            torch.testing.assert_close(factor.T @ factor, outer, rtol=0, atol=1e-13)
    assert found == {"mlp", "mse", "cnn", "linear", "frozen"}
