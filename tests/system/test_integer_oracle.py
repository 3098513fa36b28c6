"""The generic rank without floating point: integer Hessians, their rank computed exactly."""

from __future__ import annotations

import random

import flint
import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.api import rank_bound
from tests.architectures import random_case
from tests.oracles import curvature_parts
from tests.slow import first

pytestmark = pytest.mark.usefixtures("double_precision")

PRIME = 2**31 - 1
"""The rank modulo a prime never exceeds the true one, and almost never falls below it."""


def integer_rank(matrix: Tensor) -> int:
    """Rank of an integer matrix, exactly."""
    entries = [int(x) % PRIME for x in matrix.round().flatten().tolist()]
    return flint.nmod_mat(*matrix.shape, entries, PRIME).rank()


def integer_hessians(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Hessian of half the summed squared error and its parts: integers, below 2^53."""
    size = model(x).numel()
    parts = curvature_parts(model, x, "mse", y)
    functional, J = size / 2 * parts["functional"], parts["jacobian"]
    return {"total": functional + J.T @ J, "outer": J.T @ J, "functional": functional}


@pytest.mark.parametrize("seed", first(2, range(12)))
def test_the_generic_rank_is_that_of_an_integer_hessian(seed: int) -> None:
    model = None
    while model is None:  # pooling and normalisation divide; the others keep integers integers
        case = random_case(seed, max_parameters=120)
        seed += 1000
        if not case.features & {"pool", "pooled", "norm"}:
            model = case.model
    draw = random.Random(seed)
    for p in model.parameters():
        p.data = (
            torch.tensor([draw.choice([-3, -2, -1, 1, 2, 3]) for _ in range(p.numel())])
            .to(p)
            .reshape(p.shape)
        )
    features = case.inputs[0].numel()
    values = [[draw.randint(-5, 5) for _ in range(features)] for _ in range(features + 2)]
    x = torch.tensor(values, dtype=torch.float64).reshape(-1, *case.inputs.shape[1:])
    y = torch.tensor([[draw.randint(-9, 9) for _ in range(case.num_outputs)] for _ in x]).to(x)
    matrices = integer_hessians(model, x, y)
    assert all(float((H - H.round()).abs().max()) < 1e-3 for H in matrices.values())
    assert max(float(H.abs().max()) for H in matrices.values()) < 2**50
    bound = rank_bound(model, x[:1], data=x, kind="generic")
    exact = {part: integer_rank(H) for part, H in matrices.items()}
    assert exact == {"total": bound.total, "outer": bound.outer, "functional": bound.functional}


def test_the_oracle_knows_a_rank() -> None:
    assert integer_rank(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 5.0]])) == 2
