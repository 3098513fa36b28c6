"""Reference data named on the command line: what they may be, and how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from lightning_hessrank.cli.data import reference_batches, reference_data
from lightning_hessrank.cli.spec import Spec
from lightning_hessrank.network.batches import batch_size

BROKEN = """
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

class Failing(LightningDataModule):
    def prepare_data(self):
        raise FileNotFoundError("no such\\nfolder")

class Endless:
    def __len__(self):
        return 8
    def __getitem__(self, i):
        raise KeyError(i)

def loader():
    return DataLoader(Endless(), batch_size=4)
"""


@pytest.mark.parametrize("name", ["Data", "batch"])
def test_as_many_samples_as_were_asked_for(here: Path, name: str) -> None:
    spec = Spec.parse(f"train:{name}")
    batches = reference_batches(spec, 10, seed=0)
    assert sum(map(batch_size, batches)) == 10
    for mine, again in zip(batches, reference_batches(spec, 10, seed=0), strict=True):
        assert torch.equal(mine[0], again[0]) or name == "batch"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", "'broken:Failing' failed: broken.py:7: FileNotFoundError: no such folder"),
        ("loader", "the batches of 'broken:loader' failed: broken.py:13: KeyError: 0"),
    ],
)
def test_what_the_users_code_raises_is_one_line(here: Path, name: str, message: str) -> None:
    Path("broken.py").write_text(BROKEN)
    with pytest.raises(typer.BadParameter) as raised:
        reference_batches(Spec.parse(f"broken:{name}"), 4, seed=0)
    assert raised.value.message == message


def test_what_is_no_data_is_refused(here: Path) -> None:
    with pytest.raises(typer.BadParameter, match="gives a int; it takes a LightningDataModule"):
        reference_data(Spec.parse("train:NUMBER"))


def test_the_program_says_the_same(here: Path, hessrank: Any) -> None:
    Path("broken.py").write_text(BROKEN)
    result = hessrank("bound", "torch.nn:Linear(6, 3)", "--data", "broken.py:Failing")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--data': 'broken.py:Failing' failed: broken.py:7: "
        "FileNotFoundError: no such folder"
    )
