"""`examples/digits.py` in a short form: what it prints and what it logs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(printed: str) -> list[list[str]]:
    """Cells of the table's lines, which begin with an epoch and have a percentage."""
    return [line.split() for line in printed.splitlines() if re.match(r"\s+\d+ .*%", line)]


def test_linear_network_has_the_rank_of_the_bound(
    digits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits.main(["--activation", "linear", "--epochs", "2", "--logdir", str(tmp_path)])
    printed = capsys.readouterr().out
    table = rows(printed)
    assert [row[0] for row in table] == ["0", "1", "2"]
    assert all(row[3] == row[6] for row in table), printed  # rank and bound
    assert f"tensorboard --logdir {tmp_path}" in printed


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_relu_network_shows_the_curve_over_tolerances(
    digits: ModuleType, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits.main(["--model", model, "--epochs", "1", "--logdir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert len(rows(printed)) == 2
    counts = [int(x) for x in printed.split("machine\n")[1].split("\n")[0].split()[1:]]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    (run,) = tmp_path.glob("*/version_0")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    logged = [event.value for event in events.Scalars("hessian/rank")]
    assert logged == [float(row[3]) for row in rows(printed)]
