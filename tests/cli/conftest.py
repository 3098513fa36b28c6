"""A module in a file of its own, as users have it, and a way to run the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lightning_hessrank.cli import app

TRAIN = """
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(LightningModule):
    def __init__(self, width=4, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

class Data(LightningDataModule):
    def train_dataloader(self):
        g = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(64, 6, generator=g), torch.randn(64, 3, generator=g))
        return DataLoader(data, batch_size=16, shuffle=True)

def batch():
    return next(iter(Data().train_dataloader()))

def shifted_loss(module, batch):
    return (module(batch[0]) - batch[1] - 1.0).square().mean()

NUMBER = 3

class Picky(nn.Module):
    def __init__(self, *, width):
        super().__init__()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with ``train.py`` in it."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in {"train"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def hessrank() -> Callable[..., Any]:
    """Run the program in this process; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, arguments, prog_name="hessrank")

    return run
