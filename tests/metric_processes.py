"""What each process of the two-process test runs; imports no Lightning, so that it starts soon."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.metrics import HessianRank


def mlp(*widths: int, act: type[nn.Module] = nn.Identity, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def batches(*sizes: int, inputs: int = 6, outputs: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, inputs, generator=g), torch.randn(n, outputs, generator=g)) for n in sizes
    ]


def accumulate(rank: int, folder: str) -> None:
    """Give the two processes unequal shares of three batches, and note what each computes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    data = batches(11, 30, 5)
    mine = data[:1] if rank == 0 else data[1:]
    dense = HessianRank(mlp(6, 5, 4, 3), F.mse_loss)
    sketch = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="functional", max_rank=48)
    for metric in (dense, sketch):
        for pair in mine:
            metric.update(*pair)
    values = [float(dense.compute()), float(sketch.compute())]
    assert dense.estimate is not None
    assert dense.estimate.eigenvalues is not None
    outcome = (values, dense.estimate.eigenvalues.tolist(), int(dense.num_samples))
    Path(folder, f"{rank}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()
