"""A loss as a function of parameters: a weighted mean, and finite or else named."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_hessrank.hessian.function import LossFunction, check_finite
from lightning_hessrank.hessian.operator import NonFiniteError
from lightning_hessrank.network.function import Evaluation


def test_dimension_is_that_of_all_parameters() -> None:
    parameters = {"w": torch.ones(2, 3), "b": torch.ones(()), "none": torch.ones(0)}
    assert LossFunction(parameters, []).num_parameters == 7


@pytest.mark.parametrize(
    ("loss", "output", "message"),
    [
        (1.0, [1.0, math.nan, math.inf], r"output is not finite \(2 of 3 values\)"),
        (math.nan, [1.0], "the loss is nan at a finite output"),
        (-math.inf, [], "the loss is -inf at a finite output"),
    ],
)
def test_what_is_not_finite_is_named(loss: float, output: list[float], message: str) -> None:
    evaluation = Evaluation(torch.tensor(loss), (torch.tensor(output),))
    with pytest.raises(NonFiniteError, match=message):
        check_finite(evaluation)


def test_what_is_finite_passes() -> None:
    check_finite(Evaluation(torch.tensor(0.0), (torch.ones(2), torch.ones(0))))
