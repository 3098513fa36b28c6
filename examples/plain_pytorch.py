"""No Trainer: the rank in a plain PyTorch loop, and the metric that adds up batches.

python examples/plain_pytorch.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from digits import Digits
from torch import nn

from lightning_hessrank import hessian_rank, rank_bound
from lightning_hessrank.metrics import HessianRank


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    data = Digits(batch_size=50)
    data.setup("fit")
    batches = list(data.train_dataloader())
    loss_fn = nn.functional.cross_entropy
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    bound = rank_bound(model, batches[0][0], loss="cross_entropy")
    print(bound, "\n")

    metric = HessianRank(model, loss_fn)
    for epoch in range(args.epochs + 1):
        for images, labels in batches if epoch else ():
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
        metric.reset()  # the model has changed
        for images, labels in batches[:8]:
            metric.update(images, labels)
        rank = int(metric.compute())
        assert metric.estimate is not None
        print(
            f"epoch {epoch:>2}: rank {rank} of {bound.num_parameters} "
            f"(gap {metric.estimate.gap:.0e}), {metric.estimate.rank_at(1e-3)} beyond 1e-3 max|λ|"
        )

    estimate = hessian_rank(model, loss_fn, batches[:8], method="dense")  # the same, in one call
    print(f"\nhessian_rank of the same data: {estimate.rank}, by {estimate.method}")


if __name__ == "__main__":
    main()
