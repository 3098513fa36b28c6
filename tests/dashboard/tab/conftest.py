"""Runs of every kind in one folder, and read from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_hessrank.dashboard.tab.provider import Reader, reader_of_folder
from tests.dashboard import folders


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mixed")
    folders.mixed(found)
    return found


@pytest.fixture(scope="session")
def mixed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Beside a file that is none."""
    copied = tmp_path_factory.mktemp("and broken")
    shutil.copytree(folder, copied, dirs_exist_ok=True)
    broken = copied / "broken"
    broken.mkdir()
    (broken / "events.out.tfevents.1.host").write_bytes(b"no event file at all" * 9)
    return reader_of_folder(copied)
