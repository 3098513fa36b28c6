"""The ranks of a setting in two other ways: plain autograd in float64, and whole numbers."""

from __future__ import annotations

import copy
import random
from typing import Any

import flint
import torch
from torch import Tensor, nn

from tests.oracles import dense_hessian

#: The rank modulo a prime never exceeds the true one, and almost never falls below it.
PRIME = 2**31 - 1


def autograd_eigenvalues(setting: Any, loss: Any) -> Tensor:
    """Eigenvalues by ``torch.func.hessian``, by size, relative to the largest."""
    H = dense_hessian(setting.model, loss, [(setting.inputs, setting.targets)])
    size = torch.linalg.eigvalsh(H).abs().sort(descending=True).values
    return size / size[0]


def autograd_rank(setting: Any, loss: Any) -> int:
    """Number of those eigenvalues beyond ``p * eps``."""
    size = autograd_eigenvalues(setting, loss)
    return int((size > len(size) * torch.finfo(torch.float64).eps).sum())


def integer_rank(setting: Any) -> int:
    """Exact rank of the Hessian of a linear network with small whole weights, data and targets.

    Half the summed squared error then has a Hessian of whole numbers, which float64 holds exactly.
    Generic whole numbers stand for the generic weights and Gaussian data of the setting.
    """
    draw = random.Random(0)

    def whole(like: Tensor, values: list[int]) -> Tensor:
        return (
            torch.tensor([draw.choice(values) for _ in range(like.numel())]).view_as(like).double()
        )

    model = copy.deepcopy(setting.model)
    for parameter in model.parameters():
        parameter.data = whole(parameter, [-3, -2, -1, 1, 2, 3])
    count = setting.inputs[0].numel() + 2
    inputs = whole(setting.inputs[:count], list(range(-5, 6)))
    targets = whole(setting.targets[:count], list(range(-9, 10)))

    def half_sum(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets, reduction="sum") / 2

    H = dense_hessian(model, half_sum, [(inputs, targets)])
    assert float((H - H.round()).abs().max()) == 0
    assert float(H.abs().max()) < 2**50
    entries = [int(x) % PRIME for x in H.flatten().tolist()]
    return int(flint.nmod_mat(*H.shape, entries, PRIME).rank())
