"""Two networks, two optimisers, manual optimisation: a monitor for each loss of a GAN.

    python examples/gan.py --figure gan.png

With manual optimisation, ``training_step`` is not a loss function, so each monitor is given one:
``loss_fn(module, batch) -> scalar``. Either loss is a function of all weights, the generator's and
the critic's, and so is its Hessian.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor

NAMES = ("generator", "critic")


class Gan(pl.LightningModule):
    """Learns eight blobs on a circle."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        self.critic = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def training_step(self, real: Tensor, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer, loss_fn in zip(optimizers, (critic_loss, generator_loss), strict=True):
            optimizer.zero_grad()  # also of what the other loss has left there
            self.manual_backward(loss_fn(self, real))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        parts = self.critic, self.generator
        return [torch.optim.Adam(x.parameters(), lr=2e-3, betas=(0.5, 0.9)) for x in parts]


def generator_loss(module: Gan, real: Tensor) -> Tensor:
    """How badly the generator fools the critic."""
    logits = module.critic(module.generator(torch.randn(len(real), 4)))
    return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def critic_loss(module: Gan, real: Tensor) -> Tensor:
    """How badly the critic tells real from fake."""
    fake = module.generator(torch.randn(len(real), 4))
    logits = module.critic(torch.cat([real, fake]))
    labels = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
    return binary_cross_entropy_with_logits(logits, labels)


def blobs(count: int) -> Tensor:
    """Points around eight centres on the unit circle, shape ``(count, 2)``."""
    angle = torch.randint(8, (count,)) * (math.pi / 4)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--figure", type=Path, help="write the picture here")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    reference = blobs(128)
    monitors = [
        HessianRankMonitor(loss_fn=loss_fn, data=reference, name=name, method="dense")
        for name, loss_fn in zip(NAMES, (generator_loss, critic_loss), strict=True)
    ]
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(args.logdir, name="gan"),
        callbacks=list(monitors),
        accelerator="cpu",
        log_every_n_steps=5,
    )
    trainer.fit(Gan(), DataLoader(blobs(4096), batch_size=128, shuffle=True))

    print(f"\n{'epoch':>5} {'generator: loss':>16} {'rank':>5} {'critic: loss':>14} {'rank':>5}")
    for generator, critic in zip(*(monitor.history for monitor in monitors), strict=True):
        print(f"{generator['epoch']:>5} {generator['loss']:>16.3f} {generator['rank']:>5}", end=" ")
        print(f"{critic['loss']:>14.3f} {critic['rank']:>5}")
    if args.figure:
        draw(monitors).savefig(args.figure)


def draw(monitors: Sequence[HessianRankMonitor]) -> Figure:
    """Draw the counts of both networks at two tolerances over the steps."""
    figure = Figure(figsize=(6, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, monitor, color in zip(NAMES, monitors, ("#0072b2", "#d55e00"), strict=True):
        steps = [record["step"] for record in monitor.history]
        for rtol, style in ((1e-2, "-"), (1e-4, "--")):
            counts = [record["counts"][rtol] for record in monitor.history]
            axes.plot(steps, counts, style, color=color, label=f"{name}, {rtol:.0e}")
    axes.set(xlabel="step", ylabel="eigenvalues beyond tolerance", ylim=(0, 800))
    axes.legend(fontsize=8, loc="upper right", ncols=2)
    return figure


if __name__ == "__main__":
    main()
