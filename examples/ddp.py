"""Two processes on one machine: the rank is that of the mean loss over both shares of the data.

    python examples/ddp.py

Each process measures on its share of the reference data, and every Hessian-vector product is the
mean over both. At the end the first one measures on all of the data by itself, and compares.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from digits import Classifier, Digits
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Subset

from lightning_hessrank import HessianRankMonitor, hessian_rank


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    data, model = Digits(), Classifier(activation="relu")
    data.setup("fit")
    reference = DataLoader(Subset(data.train, range(200)), batch_size=100)
    monitor = HessianRankMonitor(data=reference, method="dense")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        callbacks=[monitor],
        strategy="ddp",
        logger=TensorBoardLogger(args.logdir, name="ddp"),
        log_every_n_steps=5,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)

    if trainer.is_global_zero:
        alone = hessian_rank(
            model.net.eval(), torch.nn.functional.cross_entropy, reference, method="dense"
        )
        for record in monitor.history:
            print(f"step {record['step']:>3}: rank {record['rank']}, loss {record['loss']:.4f}")
        print(f"two processes: {monitor.history[-1]['rank']}; one, on all data: {alone.rank}")


if __name__ == "__main__":
    main()
