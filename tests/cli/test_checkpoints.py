"""Checkpoints in a folder: read with weights only, in the order of training, broken ones named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_hessrank.cli.checkpoints import Checkpoint, CheckpointError, find_checkpoints


def save(path: Path, step: int, weight: float = 0.0, **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    state = {"net.weight": torch.full((1, 2), weight)}
    torch.save({"state_dict": state, "global_step": step, "epoch": step // 2, **more}, path)
    return path


def test_by_step_with_copies_behind(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "z.ckpt", 2)
    save(tmp_path / "last.ckpt", 4, 1.0)
    save(tmp_path / "named.ckpt", 4, 1.0)
    found, broken = find_checkpoints(tmp_path)
    assert [(c.path.name, c.step, c.epoch) for c in found] == [
        ("z.ckpt", 2, 1),
        ("named.ckpt", 4, 2),
        ("last.ckpt", 4, 2),
    ]
    assert found[1].weights == found[2].weights != found[0].weights
    assert broken == {}


class Code:
    """An object whose loading would run code."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no checkpoint, or cut off"),
        ({"global_step": 3}, "it is no Lightning checkpoint"),
        ([1, 2], "it is no Lightning checkpoint"),
        ({"state_dict": {}, "code": Code()}, "it cannot be loaded with weights only"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "broken.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    found, broken = find_checkpoints(tmp_path)
    assert found == []
    assert broken[path].startswith(message)
    with pytest.raises(CheckpointError, match=f"^{message}"):
        Checkpoint.read(path)
