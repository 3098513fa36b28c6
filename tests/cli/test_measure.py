"""``hessrank measure``: the callback's numbers from checkpoints, resumed, and never misled."""

from __future__ import annotations

import csv
import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor.run import Run

COMMAND = ("measure", "train:Net", "--checkpoints", "run", "--data", "train:batch")


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Train with the callback, keep every epoch's checkpoint, return the callback's history."""
    monkeypatch.syspath_prepend(here)
    train = importlib.import_module("train")
    pl.seed_everything(0, verbose=False)
    batch = train.batch()  # what the command will draw, with the same seed
    monitor = HessianRankMonitor(data=batch)
    trainer = pl.Trainer(
        max_epochs=3,
        logger=False,
        callbacks=[monitor, ModelCheckpoint("run/checkpoints", save_top_k=-1, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings(
            "ignore", ".*fewer than the logging interval.*|.*number of training b.*"
        )
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        trainer.fit(train.Net(width=5), train.Data())
    return monitor.history


def rows() -> list[dict[str, str]]:
    with Path("run/hessrank/measurements.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_numbers_as_the_callback(run: list[dict[str, Any]], hessrank: Any) -> None:
    result = hessrank(*COMMAND)
    assert result.exit_code == 0, result.stderr
    live = run[1:]  # the first was before the first step, of which there is no checkpoint
    assert [int(row["step"]) for row in rows()] == [x["step"] for x in live] == [4, 8, 12]
    for name, key in (("rank", "rank"), ("rank_outer", "rank_outer"), ("rank_functional",) * 2):
        assert [float(row[f"hessian/{name}"]) for row in rows()] == [x[key] for x in live]
    assert [row["checkpoint"] for row in rows()] == [
        f"epoch={epoch}-step={step}.ckpt" for epoch, step in ((0, 4), (1, 8), (2, 12))
    ]
    kept = torch.load("run/hessrank/monitor.pt", weights_only=True)["monitor"]["history"]
    for offline, online in zip(kept, live, strict=True):
        assert offline["loss"] == pytest.approx(online["loss"], rel=1e-12)
        assert offline["counts"] == online["counts"]
        assert offline["epoch"] == online["epoch"]
        assert offline["bound"] == online["bound"] == 45


def test_tensorboard_gets_it(run: list[dict[str, Any]], hessrank: Any) -> None:
    hessrank(*COMMAND)
    events = EventAccumulator("run/hessrank", size_guidance={"scalars": 0}).Reload()
    found = [(event.step, event.value) for event in events.Scalars("hessian/rank")]
    assert found == [(x["step"], x["rank"]) for x in run[1:]]


def test_table_is_printed(run: list[dict[str, Any]], hessrank: Any) -> None:
    lines = hessrank(*COMMAND).stdout.splitlines()
    assert lines[0].split()[:4] == ["step", "epoch", "loss", "rank"]
    assert [int(line.split()[0]) for line in lines[1:4]] == [4, 8, 12]
    assert "tensorboard --logdir run/hessrank" in lines


def test_goes_on_where_it_stopped(
    run: list[dict[str, Any]], hessrank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Run.take
    count = 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take", interrupted)
        result = hessrank(*COMMAND)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    before = rows()
    assert [row["step"] for row in before] == ["4", "8"]
    result = hessrank(*COMMAND)
    assert result.exit_code == 0, result.stderr
    assert rows()[:2] == before  # not measured again
    assert [row["step"] for row in rows()] == ["4", "8", "12"]
    assert len(result.stdout.split("\n\n")[0].splitlines()) == 4  # the table has all of them
    again = hessrank(*COMMAND)
    assert again.exit_code == 0
    assert "4 of 4 are measured already, or copies" in again.stderr
    assert len(rows()) == 3


def test_broken_files_are_reported_and_skipped(run: list[dict[str, Any]], hessrank: Any) -> None:
    folder = Path("run/checkpoints")
    whole = (folder / "epoch=1-step=8.ckpt").read_bytes()
    (folder / "epoch=1-step=8.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weights": 1}, folder / "other.ckpt")
    torch.save({"state_dict": {}, "code": Path}, folder / "code.ckpt")
    other = torch.load(folder / "epoch=0-step=4.ckpt", weights_only=True)
    other["global_step"] = 5
    other["state_dict"].pop("net.0.bias")
    torch.save(other, folder / "short.ckpt")
    result = hessrank(*COMMAND)
    assert result.exit_code == 1
    assert [row["step"] for row in rows()] == ["4", "12"]
    told = dict(
        line.removeprefix("not measured: ").split(": ", 1)
        for line in result.stderr.splitlines()
        if line.startswith("not measured: ")
    )
    assert set(told) == {
        str(folder / f"{name}.ckpt")
        for name in ("epoch=1-step=8", "text", "other", "code", "short")
    }
    assert (
        told[str(folder / "other.ckpt")] == "it is no Lightning checkpoint (it has no state_dict)"
    )
    only = "it cannot be loaded with weights only: "
    assert told[str(folder / "code.ckpt")].startswith(f"{only}Unsupported global: GLOBAL pathlib")
    assert told[str(folder / "text.ckpt")].startswith(f"{only}Unsupported")
    assert told[str(folder / "epoch=1-step=8.ckpt")] == (
        "it is no checkpoint, or cut off (RuntimeError while reading it)"
    )
    assert told[str(folder / "short.ckpt")].startswith("the weights do not fit 'train:Net': ")


def test_two_runs_in_one_folder_are_told_apart(run: list[dict[str, Any]], hessrank: Any) -> None:
    first = Path("run/checkpoints/epoch=0-step=4.ckpt")
    other = torch.load(first, weights_only=True)
    other["state_dict"]["net.0.bias"] += 1
    torch.save(other, "run/checkpoints/zzz.ckpt")
    result = hessrank(*COMMAND)
    assert result.exit_code == 1
    assert len(rows()) == 3
    assert result.stderr.splitlines()[-1] == (
        "not measured: run/checkpoints/zzz.ckpt: epoch=0-step=4.ckpt has other weights at the same "
        "step 4: are these two runs? Measure each on its own"
    )


def test_settings_are_fixed_within_a_folder(run: list[dict[str, Any]], hessrank: Any) -> None:
    hessrank(*COMMAND)
    result = hessrank(*COMMAND, "--rtol", "0.1")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: run/hessrank has measurements with rtol=None, not 0.1: one folder, one meaning; "
        "choose another --output, or the same settings"
    )
    other = ("measure", "train:Net(lr=0.2)", *COMMAND[2:])  # the weights would fit
    assert "measurements with model='train:Net', not 'train:Net(" in hessrank(*other).stderr
    assert hessrank(*COMMAND, "--rtol", "0.1", "--output", "other").exit_code == 0


def test_options_have_their_effect(run: list[dict[str, Any]], hessrank: Any) -> None:
    hessrank(*COMMAND, "--loss-fn", "train:shifted_loss", "--output", "shifted")
    hessrank(*COMMAND, "--max-samples", "2", "--output", "two")
    shifted, two, plain = (
        torch.load(f"{folder}/monitor.pt", weights_only=True)["monitor"]["history"]
        for folder in ("shifted", "two", _measured(hessrank))
    )
    assert shifted[0]["loss"] != plain[0]["loss"]
    assert two[0]["rank_outer"] == 6 < plain[0]["rank_outer"]
    hessrank(*COMMAND, "--layers", "--mode", "train", "--output", "layers")
    state = torch.load("layers/monitor.pt", weights_only=True)
    assert len(state["monitor"]["history"][0]["layers"]) == 2
    assert state["settings"]["module_mode"] == state["monitor"]["meaning"]["module_mode"] == "train"


def _measured(hessrank: Any) -> str:
    hessrank(*COMMAND)
    return "run/hessrank"


def test_data_module_and_shuffled_loader_are_the_same_data_each_time(
    run: list[dict[str, Any]], hessrank: Any
) -> None:
    losses = []
    for folder in ("a", "b"):
        command = (*COMMAND[:-1], "train:Data", "--max-samples", "10", "--output", folder)
        assert hessrank(*command).exit_code == 0
        history = torch.load(f"{folder}/monitor.pt", weights_only=True)["monitor"]["history"]
        losses.append([record["loss"] for record in history])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("train:Net", "--checkpoints", "nowhere", "--data", "train:batch"),
            2,
            "Error: Invalid value for '--checkpoints': Directory 'nowhere' does not exist.",
        ),
        (
            ("train:Net", "--checkpoints", ".", "--data", "train:batch"),
            2,
            "Error: Invalid value for '--checkpoints': there is no *.ckpt in . or below",
        ),
        (
            ("train:Net", "--checkpoints", "full", "--data", "train:NUMBER"),
            2,
            "Error: Invalid value for '--data': 'train:NUMBER' gives a int; it takes a "
            "LightningDataModule, a DataLoader, or one batch of tensors",
        ),
        (
            ("train:Net", "--checkpoints", "full", "--data", "train:bach"),
            2,
            "Error: Invalid value for '--data': 'train' has no 'bach' for 'train:bach'; did you "
            "mean 'batch'?",
        ),
        (
            ("torch.nn:Linear(1, 1)", "--checkpoints", "full", "--data", "train:batch"),
            1,
            "not measured: full/some.ckpt: 'torch.nn:Linear(1, 1)' gives a Linear, which is no "
            "LightningModule (it has no training_step)",
        ),
    ],
)
def test_errors(
    here: Path, hessrank: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Path("full").mkdir()
    if "full" in arguments:
        torch.save({"state_dict": {}}, "full/some.ckpt")
    result = hessrank("measure", *arguments)
    assert result.exit_code == code, result.output
    last = result.stderr.splitlines()[-1].replace("dir 'nowhere'", "Directory 'nowhere'")
    assert last == message  # but for a word that differs between versions of typer
