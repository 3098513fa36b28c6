"""A process is left as it was found, also by what fails inside."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_hessrank.subject.isolation import (
    differentiable_twice,
    frozen_rng,
    preserved_rng,
    undisturbed,
)
from tests.training import differences, flags


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


@pytest.mark.parametrize(
    "isolated",
    [
        preserved_rng,
        undisturbed,
        partial(frozen_rng, 3),
        partial(differentiable_twice, torch.float64),
    ],
    ids=["preserved", "undisturbed", "frozen", "differentiable twice"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_generators_and_flags_are_put_back(
    isolated: Callable[[], AbstractContextManager[Any]], fails: bool
) -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected, before = draw(), flags()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), isolated():
        draw()
        assert 1 / (not fails)
    assert draw() == expected
    assert differences(flags(), before) == []


def test_frozen_draws_are_the_same_each_time() -> None:
    def drawn(seed: int) -> tuple[float, float, float]:
        with frozen_rng(seed):
            return draw()

    assert drawn(5) == drawn(5) != drawn(6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_inside_whatever_the_callers_mode(mode: Any) -> None:
    with mode(), undisturbed():
        x = torch.ones(2, requires_grad=True)
        (gradient,) = torch.autograd.grad((x**2).sum(), x)
    assert torch.equal(gradient, torch.full((2,), 2.0))


def test_checkpointed_code_can_be_differentiated_twice() -> None:
    x = torch.linspace(0, 1, 3, dtype=torch.float64, requires_grad=True)
    for reentrant in (True, False):
        with differentiable_twice(torch.float64):
            y = checkpoint(torch.sin, x, use_reentrant=reentrant).sum()
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
            (second,) = torch.autograd.grad(gradient.sum(), x)
        torch.testing.assert_close(second, -x.detach().sin())
