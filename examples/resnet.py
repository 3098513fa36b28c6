"""A network too large for exact ranks: counts of outliers, now and then.

    python examples/resnet.py --figure resnet.png
    python examples/resnet.py --every 1 --max-overhead 0.5    # as often as half of the time allows

A residual network with batch norm. The stochastic method (Lanczos) counts the eigenvalues beyond a
tolerance: exactly as far as they have converged, with a standard error for the rest. These counts
have names of their own, ``hessian-estimate/…``, since they are no exact ranks. ``max_overhead``
lets measuring take no more than its share of the time, and leaves out the measurements that would;
how many are left then depends on the machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from digits import Digits
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_hessrank import HessianRankMonitor


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class ResNet(pl.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--every", type=int, default=10, help="epochs between measurements")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-overhead", type=float, help="share of the time, in (0, 1)")
    parser.add_argument("--logdir", default="runs")
    parser.add_argument("--figure", type=Path, help="write the picture here")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    monitor = HessianRankMonitor(
        every_n_epochs=args.every,
        method="lanczos",
        rtol=1e-1,
        max_samples=args.samples,
        max_overhead=args.max_overhead,
    )
    data = Digits(batch_size=50)
    data.setup("fit")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(args.logdir, name="resnet"),
        callbacks=[monitor],
        accelerator="cpu",
        log_every_n_steps=5,
    )
    trainer.fit(ResNet(args.width), data.train_dataloader())

    print(f"\n{'step':>5} {'loss':>8} {'eigenvalues beyond 1e-1':>24} {'seconds':>8}")
    for record in monitor.history:
        estimate = f"{record['rank']:.1f} ± {record['std_error']:.1f}"
        print(
            f"{record['step']:>5} {record['loss']:>8.4f} {estimate:>24} {record['seconds']:>8.1f}"
        )
    last = monitor.history[-1]
    print(
        f"\n{last['num_parameters']} parameters; {len(monitor.history)} measurements, "
        f"{last['skipped']} skipped; {last['overhead']:.0%} of the time went into them"
    )
    if args.figure:
        draw(monitor.history).savefig(args.figure)


def draw(history: list[dict[str, Any]]) -> Figure:
    """Draw the estimates, with two standard errors, over the steps."""
    figure = Figure(figsize=(6, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps, ranks = ([record[key] for record in history] for key in ("step", "rank"))
    errors = [2 * record["std_error"] for record in history]
    axes.errorbar(steps, ranks, errors, fmt="o-", color="#0072b2", capsize=3)
    axes.set(xlabel="step", ylabel="eigenvalues beyond 1e-1 max|λ|", ylim=(0, None))
    return figure


if __name__ == "__main__":
    main()
