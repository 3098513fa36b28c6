"""Attach the monitor to a training script that was there before: one line, and its import.

    python examples/attach.py

An autoencoder for handwritten digits, with dropout, a scheduler and shuffled data. Take out the two
lines that name the monitor: the loss at the end is the same to the last bit.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor


class Autoencoder(pl.LightningModule):
    def __init__(self, code: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, code)
        )
        self.decoder = nn.Sequential(nn.Dropout(0.05), nn.Linear(code, 64), nn.Sigmoid())

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        restored = self.decoder(self.encoder(images))
        loss = nn.functional.mse_loss(restored, images.flatten(1))
        self.log("loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(args.logdir, name="attach"),
        accelerator="cpu",
        log_every_n_steps=5,
        callbacks=[HessianRankMonitor()],
    )
    trainer.fit(Autoencoder(), DataLoader(images, batch_size=100, shuffle=True))
    print(f"loss at the end: {float(trainer.callback_metrics['loss_epoch']):.17g}")


if __name__ == "__main__":
    main()
