"""Two processes on one machine: the rank is that of the mean loss over both shares of the data.

    python examples/ddp.py

Both processes measure together, each on its own reference batch; at the end the first one computes
the rank on the union of both batches by itself, and compares.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from digits import Classifier, Digits
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Subset

from lightning_hessrank import HessianRankMonitor, hessian_rank


class Shares(Digits):
    """Gives each process a reference batch of its own, and keeps them for the comparison."""

    def reference(self, process: int, size: int = 100) -> DataLoader[Any]:
        self.setup("fit")
        share = Subset(self.train, range(process * size, (process + 1) * size))
        return DataLoader(share, batch_size=size)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=TensorBoardLogger(args.logdir, name="ddp"),
        log_every_n_steps=5,
        num_sanity_val_steps=0,
    )
    data, model = Shares(), Classifier(activation="tanh")
    monitor = HessianRankMonitor(data=data.reference(trainer.global_rank))
    trainer.callbacks.insert(0, monitor)
    trainer.fit(model, data)

    if trainer.is_global_zero:
        union = [batch for process in (0, 1) for batch in data.reference(process)]
        alone = hessian_rank(
            model.net.eval(), torch.nn.functional.cross_entropy, [tuple(x) for x in union]
        )
        for record in monitor.history:
            print(f"step {record['step']:>3}: rank {record['rank']}, loss {record['loss']:.4f}")
        print(f"two processes: {monitor.history[-1]['rank']}; one, on the union: {alone.rank}")


if __name__ == "__main__":
    main()
