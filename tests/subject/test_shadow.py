"""The shadow: all of a module in the measuring precision, and nothing of it shared."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_hessrank.subject.shadow import release, shadow_copy
from lightning_hessrank.subject.state import State

CPU = torch.device("cpu")


def net() -> Any:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.plain = torch.ones(2)
    module.held = {"a": [torch.ones(1), nn.Linear(1, 1)], "n": 3}
    module.waves = torch.ones(2, dtype=torch.complex64)
    module.register_buffer("count", torch.tensor(0))
    return module


def test_everything_floating_is_cast_and_nothing_shared() -> None:
    live = net()
    shadow = shadow_copy(live, dtype=torch.float64, device=CPU)
    tensors = [*shadow.parameters(), shadow[1].running_mean, shadow.plain, shadow.held["a"][0]]
    assert {x.dtype for x in tensors} == {torch.float64}
    assert shadow.held["a"][1].weight.dtype == torch.float64
    assert shadow.waves.dtype == torch.complex128
    assert shadow.count.dtype == torch.int64
    with torch.no_grad():
        for x in (*shadow.parameters(), shadow.plain, shadow.held["a"][0]):
            x.zero_()
    assert bool(live.plain.all())
    assert bool(live.held["a"][0].all())
    assert bool(live[0].weight.any())
    assert {x.dtype for x in live.parameters()} == {torch.float32}


def test_what_a_run_changes_is_forgotten() -> None:
    shadow = shadow_copy(net(), dtype=torch.float64, device=CPU)
    shadow.steps, shadow.seen, shadow.rng = [1], {"a"}, torch.Generator().manual_seed(1)
    shadow.others, shadow.python = np.random.default_rng(1), random.Random(1)
    with State(shadow, shadow.parameters()).rewound():
        shadow(torch.randn(5, 2, dtype=torch.float64))
        shadow.steps.append(2)
        shadow.seen.clear()
        shadow.new = 1
        torch.rand(1, generator=shadow.rng)
        shadow.others.random()
        shadow.python.random()
        assert bool(shadow[1].running_mean.any())
    assert (shadow.steps, shadow.seen, hasattr(shadow, "new")) == ([1], {"a"}, False)
    assert not bool(shadow[1].running_mean.any())
    fresh = torch.Generator().manual_seed(1)
    assert torch.equal(torch.rand(1, generator=shadow.rng), torch.rand(1, generator=fresh))
    assert shadow.others.random() == np.random.default_rng(1).random()
    assert shadow.python.random() == random.Random(1).random()


def test_released_tensors_hold_nothing() -> None:
    shadow = shadow_copy(net(), dtype=torch.float64, device=CPU)
    release(shadow)
    assert sum(x.numel() for x in (*shadow.parameters(), *shadow.buffers())) == 0
