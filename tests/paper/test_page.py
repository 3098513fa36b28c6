"""The folder as a whole: the one command knows every script, and the page tells of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.paper.conftest import PAPER

PAGE = (PAPER.parent / "README.md").read_text("utf-8")
SHARED = {"__main__", "common", "pictures"}
SCRIPTS = sorted(path.stem for path in PAPER.glob("*.py") if path.stem not in SHARED)


def test_one_command_runs_every_script(script: Callable[[str], ModuleType]) -> None:
    names = re.findall(r'"(\w+)"', re.search(r"SCRIPTS = \((.*?)\n\)", MAIN, re.S)[1])  # type: ignore[index]
    assert sorted(names) == SCRIPTS
    for name in names:
        assert callable(script(name).main)


MAIN = (PAPER / "__main__.py").read_text("utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_shows_it(name: str) -> None:
    assert f"`paper/{name}.py`" in PAGE
    assert f"(images/{name}.png)" in PAGE
    path = PAPER.parent / "images" / f"{name}.png"
    with Image.open(path) as picture:
        assert picture.mode == "P"
    assert path.stat().st_size < 60_000


def test_no_result_depends_on_the_machine() -> None:
    """Methods are named; only the shared module measures, and nothing asks for the time."""
    for name in [*SCRIPTS, *SHARED]:
        source = (PAPER / f"{name}.py").read_text("utf-8")
        assert '"auto"' not in source
        assert "hessian_rank(" not in source or name == "common"
        assert "import time" not in source or name == "__main__"


def test_a_script_prints_its_table_and_draws(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("sharing").main(["--output", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["LCN", "144", "24", "144", "144", "144", "generic"] in rows
    assert "smallest gap at a cut: " in printed
    with Image.open(tmp_path / "sharing.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
