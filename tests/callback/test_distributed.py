"""Several processes: one rank, that of the mean loss over all their reference data."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import nn

from lightning_hessrank import HessianRankMonitor, hessian_rank
from lightning_hessrank.monitor.callback import HessianRankWarning
from lightning_hessrank.processes import Processes, UnsupportedStrategyError, check_strategy
from tests.callback.training import QUIET, differences, loader, plain_module

ROOT = Path(__file__).parents[2]
LAUNCHED = ("plain", "failing", "isolated", "alone", "budget", "sketch")


def launch(out: Path, *modes: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.callback.ddp_run", str(out), *modes],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddp") / "run"
    launch(path, *LAUNCHED)
    launch(path, "spawn")
    return path


def findings(out: Path, mode: str) -> list[dict[str, Any]]:
    return [pickle.loads(Path(f"{out}.{mode}.{rank}").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("mode", ["plain", "spawn"])
def test_rank_is_that_of_the_union(out: Path, mode: str) -> None:
    first, second = findings(out, mode)
    (a,), (b,) = first["references"][0], second["references"][0]
    assert len(a[0]) + len(b[0]) == 8  # max_samples counts in total
    assert not torch.equal(a[0], b[0])
    union = tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
    alone = hessian_rank(plain_module(pl).net, nn.functional.cross_entropy, union, method="dense")
    record = first["histories"][0][0]
    assert record["rank"] == alone.rank
    assert record["tolerance"] == pytest.approx(alone.tolerance, rel=1e-12)
    outer = hessian_rank(
        plain_module(pl).net, nn.functional.cross_entropy, union, part="outer", method="dense"
    )
    assert record["rank_outer"] == outer.rank
    assert record["bound"] >= record["rank"]


@pytest.mark.parametrize("mode", ["plain", "spawn"])
def test_every_process_has_the_same_history(out: Path, mode: str) -> None:
    first, second = findings(out, mode)
    ours, theirs = first["histories"][0], second["histories"][0]
    assert [record["step"] for record in ours] == [0, 2, 4]
    for key in ("step", "rank", "tolerance", "loss", "reference"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]
    assert first["metrics"]["hessian/rank"] == second["metrics"]["hessian/rank"]


def test_processes_with_different_memory_take_the_same_products(out: Path) -> None:
    first, second = findings(out, "sketch")
    ours, theirs = first["histories"][0], second["histories"][0]
    assert [record["method"] for record in ours] == ["sketch"] * 3
    for key in ("rank", "tolerance", "counts", "gap"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]
    assert ours[0]["counts"] == {}  # the second has no room for more


def test_an_error_on_one_process_does_not_hang_the_other(out: Path) -> None:
    for found in findings(out, "failing"):
        assert [record["step"] for record in found["histories"][0]] == [0, 6]
        assert found["failures"] == [2]
        assert found["steps"] == 6


def test_processes_share_the_decision_of_the_first(out: Path) -> None:
    for found in findings(out, "budget"):
        assert [record["step"] for record in found["histories"][0]] == [0, 1, 2, 3, 4]
        assert found["skipped"] == [0]


def test_training_is_bitwise_the_same(out: Path) -> None:
    for rank in range(2):
        with_monitor, without = (
            pickle.loads(Path(f"{out}.{mode}.state.{rank}").read_bytes())
            for mode in ("isolated", "alone")
        )
        assert differences(with_monitor, without) == []


def test_resume_gives_every_process_its_own_data_back(out: Path) -> None:
    checkpoint = torch.load(f"{out}.plain.ckpt", weights_only=True)
    (state,) = (v for k, v in checkpoint["callbacks"].items() if "HessianRankMonitor" in k)
    for rank, found in enumerate(findings(out, "plain")):
        monitor = HessianRankMonitor()
        monitor.load_state_dict(state)
        series = monitor._run.series
        series.restore_reference(Processes(rank, 2))
        assert series.reference is not None
        assert differences(series.reference.batches, found["references"][0]) == []
    single = HessianRankMonitor()
    single.load_state_dict(state)
    single._run.series.restore_reference(Processes())
    reference = single._run.series.reference
    assert reference is not None
    assert len(reference.batches) == 2  # one process now holds those of both
    assert not single._run.series.is_on_other_data()


# -- strategies that are refused ---------------------------------------------------------------


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
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


def test_unknown_strategies_are_refused_with_several_processes_only() -> None:
    class Mystery:
        pass

    check_strategy(Mystery(), 1)
    with pytest.raises(UnsupportedStrategyError, match="Mystery is not known to give every"):
        check_strategy(Mystery(), 2)


def test_training_goes_on_where_the_strategy_is_refused() -> None:
    class FSDPStrategy(SingleDeviceStrategy):
        pass

    monitor = HessianRankMonitor()
    trainer = pl.Trainer(
        **{**QUIET, "accelerator": "auto"},
        strategy=FSDPStrategy(accelerator=pl.accelerators.CPUAccelerator()),
        max_epochs=1,
        callbacks=[monitor],
    )
    with pytest.warns(HessianRankWarning, match=r"no rank will be measured: FSDPStrategy splits"):
        trainer.fit(plain_module(pl), loader())
    assert trainer.global_step == 4
    assert monitor.history == []
