"""Every example runs, in a short form, and shows what it says that it shows."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Tested on its own: `test_digits_example.py`. So are the scripts of `paper/`.
ELSEWHERE = {"digits"}


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Examples import each other, as they can when run as scripts; they write to the folder."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("digits", None)


def load(name: str, source: str | None = None) -> ModuleType:
    """Import an example under a name of its own, perhaps with other source text."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if source is None:
        spec.loader.exec_module(module)
    else:
        exec(compile(source, path, "exec"), vars(module))
    return module


def scalars(folder: str, tag: str) -> list[float]:
    (run,) = Path("runs", folder).glob("version_*")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars(tag)]


def numbers(line: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", line)]


def test_none_is_forgotten() -> None:
    tested = {
        match[1]
        for match in re.finditer(r'(?:load|run)\("(\w+)"', Path(__file__).read_text("utf-8"))
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE == tested
    overview = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(f"`{path.name}`" in overview for path in EXAMPLES.glob("*.py"))


def test_attach_is_one_line_and_its_import_and_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = load("attach")
    watched.main(["--epochs", "2"])
    with_monitor = capsys.readouterr().out.splitlines()[-1]
    assert len(scalars("attach", "hessian/rank")) == 3

    lines = (EXAMPLES / "attach.py").read_text("utf-8").splitlines()
    naming = [line for line in lines if "HessianRankMonitor" in line]
    assert naming == [
        "from lightning_hessrank import HessianRankMonitor",
        "        callbacks=[HessianRankMonitor()],",
    ]
    bare = "\n".join(line for line in lines if line not in naming)
    load("attach", bare).main(["--epochs", "2", "--logdir", "bare"])
    assert capsys.readouterr().out.splitlines()[-1] == with_monitor
    assert with_monitor.startswith("loss at the end: 0.")


def test_tolerance_counts_grow_and_only_linear_stays_within_the_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load("tolerance").main(["--epochs", "1", "--figure", "curve.png"])
    printed = capsys.readouterr().out
    bound, parameters = numbers(printed.splitlines()[-1])
    for line in printed.splitlines():
        if re.match("relu|tanh|linear,", line):
            counts = numbers(line)
            assert counts == sorted(counts)
            assert counts[-1] <= (bound if line.startswith("linear,") else parameters)
    tanh = next(line for line in printed.splitlines() if line.startswith("tanh, trained"))
    assert numbers(tanh)[-1] > bound
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")


def test_early_stopping_stops_below_the_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    load("early_stopping").main(["--epochs", "5", "--threshold", "1.5"])
    printed = capsys.readouterr().out
    assert "Stopping threshold reached: hessian/rank_over_bound = 1.0 < 1.5" in printed
    assert len(scalars("early-stopping", "hessian/rank")) == 2  # before and after one epoch


def test_gan_has_a_monitor_for_each_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="the rank is logged without a bound"):
        load("gan").main(["--epochs", "1", "--figure", "gan.png"])
    generator, critic = scalars("gan", "generator/rank"), scalars("gan", "critic/rank")
    assert len(generator) == len(critic) == 2
    assert all(0 < rank <= 386 + 337 for rank in (*generator, *critic))  # parameters of both
    assert Path("gan.png").exists()


def test_plain_pytorch_metric_and_function_agree(capsys: pytest.CaptureFixture[str]) -> None:
    load("plain_pytorch").main(["--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    by_metric = next(line for line in lines if line.startswith("epoch  1: rank"))
    assert lines[-1].startswith(f"hessian_rank of the same data: {int(numbers(by_metric)[1])},")


def test_resnet_counts_have_intervals_and_names_of_their_own() -> None:
    arguments = ["--epochs", "1", "--every", "1", "--width", "2", "--samples", "8"]
    load("resnet").main([*arguments, "--figure", "resnet.png"])
    assert len(scalars("resnet", "hessian-estimate/rank")) == 2
    assert len(scalars("resnet", "hessian-estimate/rank_upper")) == 2
    assert Path("resnet.png").exists()


def test_lightning_cli_makes_the_monitor_from_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["fit", "--config", str(EXAMPLES / "cli.yaml"), "--trainer.max_epochs", "1"]
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own
    monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
    load("cli").main()
    assert len(scalars("cli", "hessian/rank")) == 2
    (saved,) = Path("runs/cli").glob("version_*/config.yaml")
    assert "class_path: lightning_hessrank.HessianRankMonitor" in saved.read_text()


def run(name: str, *arguments: str) -> str:
    """Run an example as a script; the test fails with its output if the script does."""
    command: list[Any] = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    paths = [str(EXAMPLES.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_sharded_transformer_is_measured_by_both_processes() -> None:
    printed = run("sharded", "--epochs", "1", "--seconds", "3")
    for process in (0, 1):
        assert f"process {process} holds 2404 of 4808 parameters" in printed
    assert len(re.findall(r"eigenvalues beyond 0.1", printed)) == 2
    assert printed.count("lanczos by differences of gradients") == 1  # the first process speaks
    assert len(scalars("sharded", "hessian-estimate/rank")) == 2


def test_two_processes_measure_what_one_would() -> None:
    printed = run("ddp", "--epochs", "1")
    last = re.search(r"two processes: (\d+); one, on all data: (\d+)", printed)
    assert last is not None
    assert last[1] == last[2]


def test_a_nonlinear_network_stays_below_its_theorem_and_is_explained() -> None:
    example = load("nonlinear")
    torch.manual_seed(0)
    rows = example.train(example.relu_net(), epochs=1, samples=24)
    for row in rows:
        assert row["rank"] <= row["theorem"]
        assert row["outer"] <= row["outer theorem"]
        assert 0 < row["explained"] <= row["flat"]
