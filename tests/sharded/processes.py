"""Spawned processes for the tests of sharded modules: ``python -m tests.sharded.processes``.

Runs cases without a Trainer, and writes what each process finds to ``OUT.<rank>``.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lightning_hessrank.processes import ShardingProcesses
from lightning_hessrank.sharded.estimate import sharded_ranks
from lightning_hessrank.sharded.differences import DifferenceOperator, resolve
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.sharded.shards import ShardProbes
from lightning_hessrank.subject.step import Step, model_step
from tests.sharded.networks import build, data, precision, shard

ROOT = Path(__file__).parents[2]


def launch(out: Path, module: str, *arguments: str, count: int = 2) -> None:
    """Run a module of the tests in several processes, and fail with what it says."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(out), str(count), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def findings(out: Path, count: int = 2) -> list[Any]:
    return [pickle.loads(Path(f"{out}.{rank}").read_bytes()) for rank in range(count)]


class Sharded:
    """A sharded network of one process, with its share of the data."""

    def __init__(self, name: str) -> None:
        rank, count = dist.get_rank(), dist.get_world_size()
        if name == "tensor":
            names = ("data_parallel", "tensor_parallel")
            mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=names)
            share = mesh["data_parallel"].get_local_rank()
        else:
            mesh, share = init_device_mesh("cpu", (count,)), rank
        dtype = precision(name)
        self.net = build(name).to(dtype)
        shard(self.net, mesh, name)
        self.processes = ShardingProcesses(rank, count, data=(share, 2))
        self.batch = data(dtype)[share]

    def live(self, step: Step | None = None) -> LiveModule:
        step = step or model_step(F.cross_entropy)
        return LiveModule(self.net, [self.batch], step, self.processes)


def measured(name: str) -> dict[str, Any]:
    """Products, an estimate and what is stored."""
    case = Sharded(name)
    live = case.live()
    with live.borrowed():
        resolution = resolve(live)
        vectors = ShardProbes(live.rows, 5).columns(0, 2)
        products = DifferenceOperator(live, resolution).matmat(vectors)
    whole = [
        [x.full_tensor() if hasattr(x, "full_tensor") else x for x in _as_parameters(live, column)]
        for block in (vectors, products)
        for column in block.unbind(1)
    ]
    estimate = sharded_ranks(case.live())
    return {
        "resolution": resolution,
        "vectors": [torch.cat([x.flatten() for x in column]) for column in whole],
        "ranks": estimate,
        "stored": live.rows.count,
        "dim": live.rows.dim,
    }


def _as_parameters(live: LiveModule, vector: torch.Tensor) -> list[torch.Tensor]:
    """Put the pieces of a vector where the parameters are."""
    from torch.distributed.tensor import DTensor

    found = []
    for shard_, piece in zip(live.rows.shards, live.rows.split(vector), strict=True):
        like: Any = shard_.parameter
        if isinstance(like, DTensor):
            piece = DTensor.from_local(
                piece,
                like.device_mesh,
                like.placements,
                shape=like.shape,
                stride=like.stride(),
                run_check=False,
            )
        found.append(piece)
    return found


def _main(rank: int, out: str, count: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=count)
    found = {name: measured(name) for name in names}
    Path(f"{out}.{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    place, processes, *cases = sys.argv[1:]
    Path(f"{place}.store").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_main, (place, int(processes), cases), nprocs=int(processes))
