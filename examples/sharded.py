"""A model that no process holds: a small transformer under FSDP2, on two processes.

    python examples/sharded.py

``fully_shard`` leaves each process with half of every parameter. The monitor is attached as
everywhere; each product with the Hessian is a difference of two gradients, which the strategy
gathers, computes and reduces as it does in training.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor

TOKENS, LENGTH, WIDTH = 8, 6, 16


class Block(nn.Module):
    """Causal attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.mix, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.project(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.feed(self.norms[1](x))


class Transformer(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens) + self.positions))


class Language(pl.LightningModule):
    """Predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer()

    def configure_model(self) -> None:
        """Shard block by block, and what is left with the whole."""
        mesh = self.device_mesh["data_parallel"]
        for block in self.net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens,) = batch
        outputs = self.net(tokens[:, :-1])
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), tokens[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def sequences(count: int) -> TensorDataset:
    """Counting upwards from a random token, by a random stride."""
    start, stride = torch.randint(0, TOKENS, (2, count, 1))
    return TensorDataset((start + stride * torch.arange(LENGTH + 1)) % TOKENS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="of one measurement")
    parser.add_argument("--logdir", default="runs")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*returned a view tensor.*")  # PyTorch of any head

    pl.seed_everything(0)
    torch.set_num_threads(1)
    monitor = HessianRankMonitor(rtol=1e-1, max_samples=64, max_seconds=args.seconds)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        ),
        callbacks=[monitor],
        logger=TensorBoardLogger(args.logdir, name="sharded"),
        log_every_n_steps=5,
        enable_checkpointing=False,
    )
    model = Language()
    trainer.fit(model, DataLoader(sequences(512), batch_size=32))

    here = sum(p.to_local().numel() for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    print(f"process {trainer.global_rank} holds {here} of {total} parameters")
    if trainer.is_global_zero:
        for record in monitor.history:
            print(
                f"step {record['step']:>3}: {record['rank']:.1f} ± {record['std_error']:.1f} "
                f"eigenvalues beyond 0.1 of the largest, loss {record['loss']:.4f}"
            )


if __name__ == "__main__":
    main()
