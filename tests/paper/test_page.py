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


def section(name: str) -> str:
    """What the page says of a script, without links and pictures."""
    text = PAGE.split(f"### `paper/{name}.py`", 1)[1].split("\n### ", 1)[0]
    return re.sub(r"\]\([^)]*\)", "]", text)


def numbers(text: str) -> set[int]:
    """Whole numbers of at least two digits, with or without commas between thousands."""
    found = re.findall(r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d{2,})(?![\w-]|[.,]\d)", text)
    return {int(x.replace(",", "")) for x in found}


#: Numbers of the text that are settings or differences, and that no table prints.
SAID = {
    "channels": {36, 300},
    "filter_size": {12, 100},
    "depth": {75, 100, 36, 16},
    "width": {48},
    "nine_widths": {41},
    "training": {300, 702},
}


@pytest.mark.benchmark
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_on_the_page_comes_out(
    script: Callable[[str], ModuleType],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Minutes for all of them; the short forms are in ``test_numbers.py``."""
    script(name).main(["--output", str(tmp_path)])
    printed = numbers(capsys.readouterr().out)
    assert numbers(section(name)) - SAID.get(name, set()) <= printed


def test_the_sections_have_numbers() -> None:
    assert all(len(numbers(section(name))) >= 4 for name in SCRIPTS)
    assert numbers("1,208 and 96 of 1e-3, 3.14, 64-16-10, 7 or 250.") == {1208, 96, 250}


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
