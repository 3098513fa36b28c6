"""The example that shows the growth of the rank with the channels."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_rank_and_bound_agree_and_grow_linearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[2] / "examples" / "channel_growth.py"
    spec = importlib.util.spec_from_file_location("channel_growth", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "channel_growth", example)
    spec.loader.exec_module(example)
    picture = tmp_path / "growth.png"
    monkeypatch.setattr(
        sys, "argv", ["channel_growth.py", "--channels", "8,12", "--output", str(picture)]
    )
    points = example.main()
    assert [(x.parameters, x.rank, x.bound) for x in points] == [
        (728, 592, 592),
        (1524, 776, 776),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
