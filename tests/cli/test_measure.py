"""``hessrank measure``: the callback's numbers from checkpoints, resumed, and never misled."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.cli.history import history_table
from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.monitor.run import Run
from tests.system.terminal_run import SAID
from tests.terminal import Terminal

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
    details = torch.load("run/hessrank/monitor.pt", weights_only=True)["monitor"]["details"]
    assert [x["step"] for x in details] == [4, 8, 12]
    for offline, online in zip(kept, live, strict=True):
        assert offline["loss"] == pytest.approx(online["loss"], rel=1e-12)
        assert offline["counts"] == online["counts"]
        assert offline["epoch"] == online["epoch"]
        assert offline["bound"] == online["bound"] == 45


@pytest.mark.slow
def test_tensorboard_gets_it(run: list[dict[str, Any]], hessrank: Any) -> None:
    hessrank(*COMMAND)
    events = EventAccumulator("run/hessrank", size_guidance={"scalars": 0}).Reload()
    found = [(event.step, event.value) for event in events.Scalars("hessian/rank")]
    assert found == [(x["step"], x["rank"]) for x in run[1:]]


@pytest.mark.slow
def test_table_is_printed(run: list[dict[str, Any]], hessrank: Any) -> None:
    lines = hessrank(*COMMAND).stdout.splitlines()
    assert lines[0].split()[:4] == ["step", "epoch", "loss", "rank"]
    assert [int(line.split()[0]) for line in lines[1:4]] == [4, 8, 12]
    assert "tensorboard --logdir run/hessrank" in lines


@pytest.mark.slow
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


def before(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def after(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    function(*args, **kwargs)
    raise KeyboardInterrupt


#: What a measurement writes, in order: where it is, and which of its calls belongs to the second
#: checkpoint.
WRITES = {
    "events": (Dashboard, "write", 2),
    "state": (torch, "save", 2),
    "state is put in its place": (os, "replace", 3),
    "table is put in its place": (os, "replace", 4),
}


@pytest.mark.parametrize("where", [before, after])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_interrupted_between_any_two_writes_nothing_is_lost(
    run: list[dict[str, Any]],
    hessrank: Any,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[..., Any],
    write: tuple[Any, str, int],
) -> None:
    owner, name, which = write
    real, calls = getattr(owner, name), 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (where(real, *args, **kwargs)) if calls == which else real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert hessrank(*COMMAND).exit_code == 130
    assert calls == which
    result = hessrank(*COMMAND)
    assert result.exit_code == 0, result.stderr
    live = [(x["step"], x["rank"]) for x in run[1:]]
    assert [(int(row["step"]), float(row["hessian/rank"])) for row in rows()] == live
    kept = torch.load("run/hessrank/monitor.pt", weights_only=True)
    assert [(x["step"], x["rank"]) for x in kept["monitor"]["history"]] == live
    assert [row["step"] for row in kept["rows"]] == [4, 8, 12]
    events = EventAccumulator("run/hessrank", size_guidance={"scalars": 0}).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("hessian/rank")]
    assert sorted(set(shown)) == live  # a step may be there twice, with the same number
    assert len(shown) <= 4
    assert len(result.stdout.split("\n\n")[0].splitlines()) == 4
    assert not list(Path("run/hessrank").glob("*.part"))


def test_damaged_state_is_an_error_that_says_what_to_do(
    run: list[dict[str, Any]], hessrank: Any
) -> None:
    hessrank(*COMMAND)
    state = Path("run/hessrank/monitor.pt")
    state.write_bytes(state.read_bytes()[:100])
    result = hessrank(*COMMAND)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: run/hessrank/monitor.pt is damaged or of another version (RuntimeError while "
        "reading it); remove it to measure anew, or choose another --output"
    )


def test_unusable_folder_is_an_error(run: list[dict[str, Any]], hessrank: Any) -> None:
    Path("file").write_text("")
    result = hessrank(*COMMAND, "--output", "file/inside")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: file/inside cannot be used: Not a directory"


def test_table_says_how_and_on_what_every_rank_was_found(
    run: list[dict[str, Any]], hessrank: Any
) -> None:
    p = run[1]["num_parameters"]
    eps = torch.finfo(torch.float64).eps
    blocks = hessrank(*COMMAND).stdout.split("\n\n")
    assert blocks[1] == (
        f"method dense, tolerance {p * eps:.2g} max|λ|, samples 16, mode eval, parameters {p}, "
        "bound is a reference line, limited by the number of parameters"
    )
    arguments = ("--method", "lanczos", "--mode", "train", "--max-samples", "9")
    table, facts, _ = hessrank(*COMMAND, *arguments, "--output", "other").stdout.split("\n\n")
    assert facts.startswith("method lanczos, tolerance 0.001 max|λ|, samples 9, mode train, ")
    history = torch.load("other/monitor.pt", weights_only=True)["monitor"]["history"]
    assert ("95 % interval" in table) == any("rank_lower" in x for x in history)


def test_what_differs_between_measurements_is_in_the_table() -> None:
    record = {"step": 8, "epoch": 1, "loss": 0.5, "rank": 7, "num_parameters": 9, "bound": 8}
    first = {**record, "method": "dense", "rtol": 1e-3, "bound_is_theorem": True}
    later = {**first, "step": 16, "rank": 9, "bound_is_theorem": False}
    assert history_table([later, first]).splitlines() == [
        "step  epoch  loss  rank  bound      bound is a",
        "   8      1   0.5     7      8         theorem",
        "  16      1   0.5     9      8  reference line",
        "",
        "method dense, tolerance 0.001 max|λ|, parameters 9",
    ]
    estimated = {**first, "rank": 7.25, "rank_lower": 6.0, "rank_upper": 8.5}
    assert "7.25       6 to 8.5 " in history_table([estimated])
    assert history_table([]) == ""


READING_STEP = """
from train import Net as Plain

class Net(Plain):
    def training_step(self, batch, batch_idx):
        scale = {scale}
        return super().training_step(batch, batch_idx) * scale
"""


def test_step_reads_where_the_checkpoint_stands(run: list[dict[str, Any]], hessrank: Any) -> None:
    scale = (
        "1 + self.trainer.global_step * self.trainer.world_size + self.trainer.is_global_zero"
        " * (self.global_step + 100 * self.current_epoch)"
    )
    Path("reading.py").write_text(READING_STEP.format(scale=scale))
    hessrank(*COMMAND)
    hessrank("measure", "reading:Net", *COMMAND[2:], "--output", "reading")
    plain, reading = (
        torch.load(f"{folder}/monitor.pt", weights_only=True)["monitor"]["history"]
        for folder in ("run/hessrank", "reading")
    )
    for a, b in zip(plain, reading, strict=True):
        factor = 1 + 2 * a["step"] + 100 * a["epoch"]
        assert b["loss"] == pytest.approx(a["loss"] * factor, rel=1e-12)


def test_step_is_not_told_what_a_checkpoint_does_not_know(
    run: list[dict[str, Any]], hessrank: Any
) -> None:
    Path("asking.py").write_text(READING_STEP.format(scale="self.trainer.max_epochs"))
    result = hessrank("measure", "asking:Net", *COMMAND[2:])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith(
        "AttributeError: the step reads trainer.max_epochs, which a checkpoint does not tell; pass "
        "a loss function that needs no trainer (loss_fn(module, batch) -> scalar loss)"
    )


@pytest.mark.parametrize("missing", ["pytorch_lightning", "lightning"])
def test_either_namespace_will_do(run: list[dict[str, Any]], hessrank: Any, missing: str) -> None:
    """The program itself imports neither."""
    hessrank(*COMMAND)
    expected = rows()
    namespace = {"lightning": "pytorch_lightning", "pytorch_lightning": "lightning.pytorch"}
    source = Path("train.py").read_text().replace("pytorch_lightning", namespace[missing])
    Path("train.py").write_text(source)
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from lightning_hessrank.cli import app\n"
        f"app({[*COMMAND, '--output', 'other']!r}, standalone_mode=False)\n"
        f"assert not any(m.split('.')[0] == {missing!r} for m in sys.modules if m != {missing!r})"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Path("other/measurements.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [x["hessian/rank"] for x in found] == [x["hessian/rank"] for x in expected]


@pytest.mark.slow
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
    assert told[str(folder / "epoch=1-step=8.ckpt")] in {
        f"it is no checkpoint, or cut off ({kind} while reading it)"
        for kind in ("RuntimeError", "OSError")  # torch's, by where the file was cut
    }
    assert told[str(folder / "short.ckpt")] == (
        "the weights do not fit 'train:Net': Error(s) in loading state_dict for Net: Missing "
        'key(s) in state_dict: "net.0.bias".'
    )


def test_a_single_checkpoint_that_is_cut_off_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hessrank: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.zeros(99)}}, "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.ckpt").write_bytes(Path("whole").read_bytes()[:300])
    (tmp_path / "alone.py").write_text("from torch import nn\nNet = nn.Linear\n")
    result = hessrank("measure", "alone.py:Net", "--checkpoints", "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("not measured: run/a.ckpt: it is no checkpoint, or cut off (")
    assert not (tmp_path / "run" / "hessrank").exists()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    hessrank(*COMMAND, "--fine-layers", "--output", "fine")
    fine = torch.load("fine/monitor.pt", weights_only=True)["monitor"]["history"][0]
    assert sum(map(len, fine["block_norms"].values())) == 1
    state = torch.load("layers/monitor.pt", weights_only=True)
    assert len(state["monitor"]["history"][0]["layers"]) == 2
    assert state["settings"]["module_mode"] == state["monitor"]["meaning"]["module_mode"] == "train"


def _measured(hessrank: Any) -> str:
    hessrank(*COMMAND)
    return "run/hessrank"


@pytest.mark.slow
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


def test_bars_on_a_terminal_leave_only_the_table(run: list[dict[str, Any]], here: Path) -> None:
    program = (
        "from tests.system.terminal_run import slowly\n"
        "from lightning_hessrank.cli import app\n"
        "slowly()\n"
        f"app({[*COMMAND, '--method', 'sketch']!r})\n"
    )
    terminal = Terminal("-c", program)
    assert terminal.code == 0, terminal.final
    both = [
        screen
        for screen in terminal.screens
        if any("epoch=1-step=8.ckpt" in line for line in screen)
        and any("hessian rank" in line for line in screen)
    ]
    assert both
    for screen in terminal.screens:
        assert sum("hessian rank" in line for line in screen) <= 1, "\n".join(screen)
    assert not any("━" in line for line in terminal.final)
    assert {line for line in terminal.final if SAID in line} == {SAID}
    start = next(i for i, x in enumerate(terminal.final) if x.split()[:2] == ["step", "epoch"])
    assert [line.split()[0] for line in terminal.final[start + 1 : start + 4]] == ["4", "8", "12"]


@pytest.mark.slow
def test_fifty_interruptions_at_random_moments_lose_nothing(run: list[dict[str, Any]]) -> None:
    command = [sys.executable, "-m", "tests.cli.interrupted", "50"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path.cwd())])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["interrupted"] >= 25
    assert found["steps"] == found["every"] == [x["step"] for x in run[1:]]
    live = [x["rank"] for x in run[1:]]
    assert [float(row["hessian/rank"]) for row in rows()] == live
