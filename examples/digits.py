"""Watch the Hessian rank of a network that learns scikit-learn's handwritten digits.

    python examples/digits.py                        # fully connected, ReLU
    python examples/digits.py --activation linear    # the theorem: rank = bound
    python examples/digits.py --model cnn

Needs no download: the 1,797 real 8×8 images ship with scikit-learn.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_hessrank import HessianRankMonitor

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


class Digits(pl.LightningDataModule):
    """8×8 grey images of ten digits, scaled to [0, 1]; 297 of 1,797 are kept for validation."""

    def __init__(self, batch_size: int = 100) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        split = torch.Generator().manual_seed(0)
        self.train, self.val = random_split(TensorDataset(images, labels), [1500, 297], split)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=297)


class Classifier(pl.LightningModule):
    """A small network for the digits, trained with cross-entropy."""

    def __init__(self, model: str = "mlp", activation: str = "relu", lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        act = ACTIVATIONS[activation]
        if model == "mlp":
            layers = [nn.Flatten(), nn.Linear(64, 16), act(), nn.Linear(16, 10)]
        else:
            layers = [nn.Conv2d(1, 4, 3), act(), nn.Conv2d(4, 6, 3), act()]
            layers += [nn.Flatten(), nn.Linear(6 * 4 * 4, 10)]
        self.net = nn.Sequential(*layers)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class Validations(pl.Callback):
    """Remembers loss and accuracy after every validation, for the table."""

    def __init__(self) -> None:
        self.curve: list[tuple[float, float]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.curve.append((float(metrics["val_loss"]), float(metrics["val_accuracy"])))


def print_ranks(history: list[dict[str, Any]], validations: list[tuple[float, float]]) -> None:
    """Print one line per measurement: what the network has learnt, its rank and the bound."""
    print(f"\n{'epoch':>5} {'val loss':>9} {'accuracy':>9} {'rank':>6} {'outer':>6} ", end="")
    print(f"{'functional':>10} {'bound':>6}")
    for epoch, (record, (loss, accuracy)) in enumerate(zip(history, validations, strict=True)):
        print(f"{epoch:>5} {loss:>9.4f} {accuracy:>9.1%} {record['rank']:>6}", end=" ")
        print(f"{record['rank_outer']:>6} {record['rank_functional']:>10} ", end="")
        print(f"{record['bound']:>6}", note(record))
    last = history[-1]
    print(f"\n{last['num_parameters']} parameters; {last['method']}, ", end="")
    print(f"rank = eigenvalues beyond {last['rtol']:.1e} · max|λ| (float64)")


def note(record: dict[str, Any]) -> str:
    """Say where a theorem is not met with equality, and why that can be."""
    missing = record.get("bound", 0) - record["rank"]
    if not record["bound_is_theorem"] or missing == 0:
        return ""
    return (
        f"  {missing} below the theorem's bound: residuals have lost rank (gap {record['gap']:.1g})"
    )


def print_counts(history: list[dict[str, Any]]) -> None:
    """Print the number of eigenvalues beyond each relative tolerance."""
    tolerances = list(history[0]["counts"])
    print("\nEigenvalues beyond tolerance · max|λ|:\n")
    print(f"{'epoch':>5}", *(f"{t:>7.0e}" for t in tolerances), f"{'machine':>8}")
    for epoch, record in enumerate(history):
        counts = (f"{record['counts'][t]:>7}" for t in tolerances)
        print(f"{epoch:>5}", *counts, f"{record['rank']:>8}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="relu")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    # The images are in memory: a loader without worker processes is the fastest there is.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # of torch, used by Lightning

    pl.seed_everything(args.seed)
    model, data = Classifier(args.model, args.activation), Digits()
    monitor, validations = HessianRankMonitor(method="dense"), Validations()
    logger = TensorBoardLogger(args.logdir, name=f"digits-{args.model}-{args.activation}")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=logger,
        callbacks=[monitor, validations],
        num_sanity_val_steps=0,
        accelerator="cpu",
        log_every_n_steps=5,
    )
    trainer.validate(model, data, verbose=False)  # the untrained network, for the first line
    trainer.fit(model, data)

    print_ranks(monitor.history, validations.curve)
    if args.activation != "linear":
        print_counts(monitor.history)
    print(f"\ntensorboard --logdir {args.logdir}")


if __name__ == "__main__":
    main()
