"""The scripts of ``examples/paper`` as modules: they import each other by their bare names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

PAPER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by its name, for this test only."""
    monkeypatch.syspath_prepend(PAPER)
    names = {path.stem for path in PAPER.glob("*.py")} - {"__main__"}
    assert not names & set(sys.modules)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
