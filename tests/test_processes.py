"""Processes: what they share, and the strategies under which that is impossible."""

from __future__ import annotations

from typing import Any

import pytest
from pytorch_lightning.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)

from lightning_hessrank.processes import (
    Processes,
    ShardingProcesses,
    UnsupportedStrategyError,
    check_strategy,
)
from tests.training import TRAINS

pytestmark = TRAINS


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_sharded_strategies_are_refused_by_name(strategy: type) -> None:
    sharded = strategy.__new__(strategy)  # building one needs what it shards over
    with pytest.raises(UnsupportedStrategyError) as caught:
        check_strategy(sharded, 2)
    assert str(caught.value) == (
        f"{strategy.__name__} splits the module over processes or devices, so that there is no "
        "whole copy whose Hessian could be measured during training; train with strategy='ddp' or "
        "on one device, or measure a checkpoint afterwards with "
        "lightning_hessrank.hessian_rank(...)"
    )


def test_shards_that_can_be_measured_live_are_welcome() -> None:
    check_strategy(ModelParallelStrategy.__new__(ModelParallelStrategy), 2)


def test_processes_with_the_same_data_speak_with_one_voice() -> None:
    class Four(ShardingProcesses):
        def gather(self, value: Any) -> list[Any]:
            return [(0, "a"), (0, "b"), (1, "c"), (1, "d")]

    data = Four(2, 4, data=(1, 2)).data
    assert (data.rank, data.count) == (1, 2)
    assert data.gather("c") == ["a", "c"]
    assert Processes(1, 2).data.count == 2


def test_unknown_strategies_are_refused_with_several_processes_only() -> None:
    class Mystery:
        pass

    check_strategy(Mystery(), 1)
    with pytest.raises(UnsupportedStrategyError, match="Mystery is not known to give every"):
        check_strategy(Mystery(), 2)
