"""What the rank of a nonlinear network can be: a ReLU net and a small transformer learn digits.

    python examples/nonlinear.py                   # prints the tables
    python examples/nonlinear.py --figure nonlinear.png

At each epoch: the rank, the theorem beside it (the bound of the live network on these data), how
many flat directions of the outer-product Hessian are explained by symmetries, of how many there
are, and the effective dimension at weight decay 1e-2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank import batch_bound, hessian_rank

ALPHA = 1e-2


class Transformer(nn.Module):
    """Eight rows of an image are the tokens; one pre-norm block with two heads."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        q, k, v = (z.unflatten(2, (2, -1)).transpose(1, 2) for z in self._qkv(x))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(x.mean(1))

    def _qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(self.norms[0](x)).chunk(3, 2)


def relu_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))


def train(model: nn.Module, epochs: int, samples: int) -> list[dict[str, float]]:
    """Train, and return what was found at every epoch."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    reference = (images[:samples], labels[:samples])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    rows = []
    for epoch in range(epochs + 1):
        total = hessian_rank(model, "cross_entropy", reference)
        outer = hessian_rank(model, "cross_entropy", reference, part="outer")
        bound = batch_bound(model, "cross_entropy", reference)
        rows.append(
            {
                "epoch": epoch,
                "rank": total.rank,
                "theorem": bound.total,
                "outer": outer.rank,
                "outer theorem": bound.outer or 0,
                "explained": bound.flat_directions,
                "flat": outer.num_parameters - outer.rank,
                f"N_eff({ALPHA:g})": round(total.effective_dimension(ALPHA), 1),
            }
        )
        print("  ".join(f"{x:>13}" for x in rows[-1].values()), flush=True)
        for i in torch.randperm(len(images)).split(100):
            optimiser.zero_grad()
            F.cross_entropy(model(images[i]), labels[i]).backward()
            optimiser.step()
    print(bound)
    return rows


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw rank, theorem and effective dimension over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for key, style in (("theorem", "k--"), ("rank", "C0o-"), ("outer theorem", "0.6")):
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], style, label=key)
        for key, style in (("outer", "C1o-"), (f"N_eff({ALPHA:g})", "C2o-")):
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], style, label=key)
        axes.set(title=name, xlabel="epoch", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64, help="reference data")
    parser.add_argument("--figure", type=Path, help="write the picture here")
    arguments = parser.parse_args()
    found = {}
    for name, build in (("ReLU net", relu_net), ("transformer", Transformer)):
        torch.manual_seed(0)
        print(f"{name}\n" + "  ".join(f"{x:>13}" for x in HEADER))
        found[name] = train(build(), arguments.epochs, arguments.samples)
    if arguments.figure:
        plot(found, arguments.figure)


HEADER = ("epoch", "rank", "theorem", "outer", "outer theorem", "explained", "flat", "N_eff")

if __name__ == "__main__":
    main()
