"""Why "the rank" of a nonlinear network is a curve: eigenvalues counted against the tolerance.

    python examples/tolerance.py --figure tolerance.png

Three networks of one shape, linear, ReLU and tanh, before and after training on handwritten digits.
The linear one climbs to its bound and stays there, however small the tolerance. The others do not
stop at it: what their rank is depends on where one reads it off.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import ACTIVATIONS, Digits
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_hessrank import RankEstimate, hessian_rank, rank_bound

TOLERANCES = [10 ** (-x / 4) for x in range(2, 61)]


class Net(pl.LightningModule):
    def __init__(self, activation: str, hidden: int) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        layers = [nn.Flatten(), nn.Linear(64, hidden, bias=False), act()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden, 10, bias=False))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--figure", type=Path, help="write the picture here")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    data = Digits()
    data.setup("fit")
    images, labels = (torch.stack([torch.as_tensor(x[i]) for x in data.train]) for i in (0, 1))
    reference = images[:400], labels[:400]
    spectra: dict[str, tuple[RankEstimate, RankEstimate]] = {}
    for activation in ACTIVATIONS:
        pl.seed_everything(0, verbose=False)
        model = Net(activation, args.hidden)
        before = hessian_rank(model.net, nn.functional.cross_entropy, reference, method="dense")
        trainer = pl.Trainer(
            max_epochs=args.epochs, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, data.train_dataloader())
        after = hessian_rank(model.net, nn.functional.cross_entropy, reference, method="dense")
        spectra[activation] = before, after
    bound = rank_bound(
        Net("linear", args.hidden).net, images[:1], loss="cross_entropy", data=reference[0]
    )
    print_counts(spectra, bound.total)
    if args.figure:
        draw(spectra, bound.total).savefig(args.figure)


def print_counts(spectra: dict[str, tuple[RankEstimate, RankEstimate]], bound: int) -> None:
    """Print a few points of the curves."""
    columns = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
    print(f"{'eigenvalues beyond':<22}", *(f"{t:>7.0e}" for t in columns), f"{'machine':>8}")
    for activation, estimates in spectra.items():
        for when, estimate in zip(("at first", "trained"), estimates, strict=True):
            counts = (f"{estimate.rank_at(t):>7}" for t in columns)
            print(f"{activation + ', ' + when:<22}", *counts, f"{estimate.rank:>8}")
    print(f"\nlinear bound {bound}, parameters {estimate.num_parameters}")


def draw(spectra: dict[str, tuple[RankEstimate, RankEstimate]], bound: int) -> Figure:
    """Draw count against tolerance, one panel for each network."""
    figure = Figure(figsize=(9, 3), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(spectra), sharey=True)
    for axes, (activation, (before, after)) in zip(panels, spectra.items(), strict=True):
        for estimate, style, label in ((before, "--", "at first"), (after, "-", "trained")):
            counts = [estimate.rank_at(t) for t in TOLERANCES]
            axes.plot(TOLERANCES, counts, style, color="#0072b2", label=label)
        axes.axhline(bound, color="#d55e00", linestyle="-.", label="linear bound")
        axes.axhline(before.num_parameters, color="0.5", linestyle=":", label="parameters")
        axes.set(xscale="log", xlabel="tolerance / max|λ|", title=activation, ylim=(0, None))
        axes.invert_xaxis()
    panels[0].set_ylabel("eigenvalues beyond")
    panels[-1].legend(loc="lower right", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
