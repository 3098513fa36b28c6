"""Several processes: one rank, that of the mean loss over all their reference data."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import (
    SingleDeviceStrategy,
)
from torch import nn

from lightning_hessrank import HessianRankMonitor, hessian_rank
from lightning_hessrank.monitor.callback import HessianRankWarning
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.processes import Processes
from tests.training import QUIET, TRAINS, differences, loader, plain_module

pytestmark = TRAINS

ROOT = Path(__file__).parents[2]
LAUNCHED = ("plain", "failing", "isolated", "alone", "budget", "sketch")


def launch(out: Path, *modes: str) -> str:
    """Run these modes; return what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.ddp_run", str(out), *modes],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddp") / "run"
    launch(path, *LAUNCHED)
    Path(f"{path}.spawn.printed").write_text(launch(path, "spawn"), "utf-8")
    return path


def findings(out: Path, mode: str) -> list[dict[str, Any]]:
    return [pickle.loads(Path(f"{out}.{mode}.{rank}").read_bytes()) for rank in range(2)]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "spawn"])
def test_every_process_has_the_same_history(out: Path, mode: str) -> None:
    first, second = findings(out, mode)
    ours, theirs = first["histories"][0], second["histories"][0]
    assert [record["step"] for record in ours] == [0, 2, 4]
    for key in ("step", "rank", "tolerance", "loss", "reference"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]
    assert first["metrics"]["hessian/rank"] == second["metrics"]["hessian/rank"]


@pytest.mark.slow
def test_spawned_processes_say_where_their_history_is(out: Path) -> None:
    printed = Path(f"{out}.spawn.printed").read_text("utf-8")
    (said,) = [line for line in printed.splitlines() if "The strategy spawned" in line]
    assert said.startswith("hessian: rank 10 of 15 parameters; bound 10 (theorem)")
    path, key = re.findall(
        r"see torch\.load\('(.+)'\)\['callbacks'\]\[\"(.+)\"\]\['history'\]", said
    )[0]
    kept = torch.load(path, weights_only=True)["callbacks"][key]["history"]
    assert kept == findings(out, "spawn")[0]["histories"][0]


@pytest.mark.slow
def test_processes_with_different_memory_take_the_same_products(out: Path) -> None:
    first, second = findings(out, "sketch")
    ours, theirs = first["histories"][0], second["histories"][0]
    assert [record["method"] for record in ours] == ["sketch"] * 3
    for key in ("rank", "tolerance", "counts", "gap"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]
    assert ours[0]["counts"] == {}  # the second has no room for more


@pytest.mark.slow
def test_an_error_on_one_process_does_not_hang_the_other(out: Path) -> None:
    for found, speaks in zip(findings(out, "failing"), (True, False), strict=True):
        assert [record["step"] for record in found["histories"][0]] == [0, 6]
        assert found["steps"] == 6
        summary = "HessianRankMonitor: 2 of 4 measurements failed; the reason was given above"
        assert (summary in found["said"]) is speaks  # the first speaks for all


@pytest.mark.slow
def test_processes_share_the_decision_of_the_first(out: Path) -> None:
    for found in findings(out, "budget"):
        assert [record["step"] for record in found["histories"][0]] == [0, 1, 2, 3, 4]
        assert found["skipped"] == [0]


@pytest.mark.slow
def test_training_is_bitwise_the_same(out: Path) -> None:
    for rank in range(2):
        with_monitor, without = (
            pickle.loads(Path(f"{out}.{mode}.state.{rank}").read_bytes())
            for mode in ("isolated", "alone")
        )
        assert differences(with_monitor, without) == []


def resumed(state: dict[str, Any], processes: Processes) -> Series:
    """What goes on where a checkpoint left off."""
    series = Series(dict(state["meaning"]))
    series.load_state_dict(state)
    series.restore_reference(processes)
    return series


@pytest.mark.slow
def test_resume_gives_every_process_its_own_data_back(out: Path) -> None:
    checkpoint = torch.load(f"{out}.plain.ckpt", weights_only=True)
    (state,) = (v for k, v in checkpoint["callbacks"].items() if "HessianRankMonitor" in k)
    for rank, found in enumerate(findings(out, "plain")):
        reference = resumed(state, Processes(rank, 2)).reference
        assert reference is not None
        assert differences(reference.batches, found["references"][0]) == []
    single = resumed(state, Processes())
    assert single.reference is not None
    assert len(single.reference.batches) == 2  # one process now holds those of both
    assert not single.is_on_other_data()


# -- strategies that are refused ---------------------------------------------------------------


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
