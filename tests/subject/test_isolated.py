"""A copy that gives the same at every run, whatever its code does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_hessrank.subject.isolated import IsolatedModule


def test_every_run_gives_the_same() -> None:
    live = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    isolated = IsolatedModule(live, seed=3)
    x = torch.randn(6, 4)
    first, second = (isolated.run(lambda net: net(isolated.cast(x))) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float64
    other = IsolatedModule(live, seed=4)
    assert not torch.equal(other.run(lambda net: net(other.cast(x))), first)
    assert int(live[1].num_batches_tracked) == 0


@pytest.mark.parametrize("training", [None, True, False])
def test_mode_is_as_asked(training: bool | None) -> None:
    live = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    modes = [part.training for part in IsolatedModule(live, training=training).shadow]
    assert modes == ([True, False] if training is None else [training] * 2)
    assert [part.training for part in live] == [True, False]


def test_trainable_parameters_only_are_those_of_the_hessian() -> None:
    live = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    live[0].weight.requires_grad_(False)
    isolated = IsolatedModule(live)
    assert list(isolated.parameters) == ["0.bias", "1.weight", "1.bias"]
    assert isolated.num_parameters == 7
    assert not isolated.live.keys() & {id(x) for x in isolated.parameters.values()}


def test_initial_statistics_are_noticed() -> None:
    live = nn.BatchNorm1d(2)
    assert IsolatedModule(live, training=False).has_initial_statistics()
    assert not IsolatedModule(live, training=True).has_initial_statistics()
    live(torch.randn(3, 2))
    assert not IsolatedModule(live, training=False).has_initial_statistics()


def test_complex_parameters_are_refused() -> None:
    live = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, dtype=torch.complex64))})
    with pytest.raises(TypeError, match=r"^parameter w is complex: .*torch.view_as_complex$"):
        IsolatedModule(live)
