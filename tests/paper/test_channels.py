"""The example that shows the growth of the rank with the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def test_rank_and_bound_agree_and_grow_linearly(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    points = script("channels").main(["--channels", "8,12", "--output", str(tmp_path)])
    assert [(x.parameters, x.rank, x.bound.total) for x in points] == [
        (728, 592, 592),
        (1524, 776, 776),
    ]
    assert (tmp_path / "channels.png").read_bytes().startswith(b"\x89PNG")
