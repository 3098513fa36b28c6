"""The progress bar of a measurement beside the Trainer's own, on a terminal's screen."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("pty")

from tests.system.terminal_run import SAID
from tests.terminal import Terminal

RUN = ("-m", "tests.system.terminal_run")
BARS = ["RichProgressBar", "TQDMProgressBar"]


def told(lines: list[str]) -> list[str]:
    """What lines say, but for times and speeds."""
    return [re.sub(r"[\d.:?]+(<[\d:?]+)?(it/s|s/it|\b)|\s+", " ", line).strip() for line in lines]


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("bar", BARS)
def test_bar_of_a_measurement_leaves_nothing_behind(bar: str, namespace: str) -> None:
    shown = Terminal(*RUN, namespace, bar, "True")
    assert shown.code == 0, shown.final
    drawn = [screen for screen in shown.screens if any("hessian rank" in x for x in screen)]
    assert drawn  # the comparison below could not fail otherwise
    for screen in shown.screens:
        for what in ("hessian rank", "Epoch"):
            assert sum(what in line for line in screen) <= 1, screen
    hidden = Terminal(*RUN, namespace, bar, "False")
    assert not any("hessian rank" in line for screen in hidden.screens for line in screen)
    said = [line for line in shown.final if SAID in line]
    assert len(said) > 1
    assert set(said) == {SAID}  # on lines of their own
    assert told([line for line in shown.final if line != SAID]) == told(hidden.final)


def test_a_second_display_is_noticed() -> None:
    """What the test above is there for: a bar of tqdm's in the midst of Rich's display."""
    torn = Terminal(
        "-c",
        "from lightning_hessrank.monitor import place, progress\n"
        "place.trainer_bar = lambda trainer: progress.TqdmBar\n"
        "from tests.system.terminal_run import main\n"
        "main('pytorch_lightning', 'RichProgressBar', 'True')\n",
    )
    assert torn.code == 0, torn.final
    assert any(
        sum(what in line for line in screen) > 1
        for screen in torn.screens
        for what in ("hessian rank", "Epoch")
    )


def test_no_bar_where_the_trainer_shows_none() -> None:
    shown = Terminal(*RUN, "pytorch_lightning", "None", "True")
    assert shown.code == 0, shown.final
    assert not any("hessian rank" in line for screen in shown.screens for line in screen)


@pytest.mark.parametrize("bar", BARS)
def test_no_bar_in_a_plain_log(bar: str) -> None:
    command = [sys.executable, *RUN, "pytorch_lightning", bar, "True"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "hessian rank" not in done.stdout + done.stderr
