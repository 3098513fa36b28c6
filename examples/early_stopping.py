"""Stop training by the Hessian's rank: when it falls below what the architecture implies.

    python examples/early_stopping.py

A linear network has exactly the rank of its bound, until its residuals lose rank: from then on it
has begun to fit single samples. Everything that the monitor logs can be watched by other callbacks.
List it before them: they read what it has measured at the end of the same epoch.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import pytorch_lightning as pl
from digits import Classifier, Digits
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank import HessianRankMonitor


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=60, help="stop there at the latest")
    parser.add_argument(
        "--threshold", type=float, default=1.0, help="go on while the ratio is this"
    )
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    pl.seed_everything(0)
    monitor = HessianRankMonitor(method="dense")  # exact, whatever the machine is busy with
    stopping = EarlyStopping(
        monitor="hessian/rank_over_bound",
        mode="min",
        stopping_threshold=args.threshold,  # stop below it
        patience=args.epochs,  # and for no other reason
        check_on_train_epoch_end=True,
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(args.logdir, name="early-stopping"),
        callbacks=[monitor, stopping],
        accelerator="cpu",
        log_every_n_steps=5,
    )
    trainer.fit(Classifier(activation="linear", lr=1e-2), Digits(batch_size=60))

    print(f"\n{'epoch':>5} {'rank':>5} {'bound':>6} {'ratio':>7} {'loss':>8}")
    for record in monitor.history[1:]:
        print(f"{record['epoch']:>5} {record['rank']:>5} {record['bound']:>6}", end=" ")
        print(f"{record['rank_over_bound']:>7.3f} {record['loss']:>8.4f}")
    print(f"\n{stopping.stopping_reason_message or 'stopped by --epochs'}")


if __name__ == "__main__":
    main()
