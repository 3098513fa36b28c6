"""Spawned processes for the tests of sharded modules: ``python -m tests.sharded.processes``.

Runs cases without a Trainer, and writes what each process finds to ``OUT.<rank>``.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hessrank.network.batches import list_tensors
from lightning_hessrank.processes import ShardingProcesses
from lightning_hessrank.sharded.differences import DifferenceOperator, product, resolve
from lightning_hessrank.sharded.estimate import sharded_ranks
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.sharded.shards import ShardProbes
from lightning_hessrank.subject.step import Step, model_step
from tests.sharded.networks import MLP, build, data, precision, shard

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
    pieces = zip(live.rows.shards, live.rows.split(vector), strict=True)
    return [_like(each.parameter, piece) for each, piece in pieces]


def _like(parameter: Any, piece: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return piece
    return DTensor.from_local(
        piece,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
        run_check=False,
    )


class Collectives(TorchDispatchMode):
    """Counts what is exchanged: how often, and the bytes of what this process gives or gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            kind = (
                "gathers"
                if "_allgather_base_" in name
                else "reductions"
                if "_reduce_scatter_base_" in name
                else "others"
            )
            self.seen[kind] += 1
            tensors = list_tensors(list(args))
            self.seen[f"{kind} bytes"] += max(
                (x.numel() * x.element_size() for x in tensors), default=0
            )
        return func(*args, **(kwargs or {}))


def collectives() -> tuple[Counter[str], Counter[str]]:
    """Of a step of training, and of a product."""
    case = Sharded("plain")
    inputs, labels = case.batch

    def step() -> None:
        F.cross_entropy(case.net(inputs), labels).backward()

    step()
    with Collectives() as training:
        step()
    live = case.live()
    with live.borrowed():
        vector = ShardProbes(live.rows, 0).columns(0, 1)
        vector /= live.rows.norms(vector)
        with Collectives() as measuring:
            product(live, vector[:, 0], 1e-3)
    return training.seen, measuring.seen


def deadline() -> int:
    """Products until the first process has run out of time, and the second has not."""
    late = dist.get_rank() == 0
    when = time.perf_counter() + (0.0 if late else 1e6)
    return sharded_ranks(Sharded("plain").live(), deadline=when).total.num_products


def unsynchronised() -> bool:
    """Whether gradients are the same with a measurement between two micro-batches and without."""
    found = []
    for measures in (True, False):
        case = Sharded("plain")
        inputs, labels = case.batch
        case.net.set_requires_gradient_sync(False)
        F.cross_entropy(case.net(inputs), labels).backward()
        if measures:
            with (live := case.live()).borrowed():
                live.gradient()
        case.net.set_requires_gradient_sync(True)
        F.cross_entropy(case.net(2 * inputs), labels).backward()
        found.append([p.grad.to_local().clone() for p in case.net.parameters()])
    return all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def wide_network() -> MLP:
    """Along its gradient the loss bends much more than along a random vector."""
    torch.manual_seed(3)
    return MLP(100_000)


def wide() -> float:
    """Norm of the gradient of a wide float32 network, once it is checked."""
    count, net = dist.get_world_size(), wide_network()
    shard(net, init_device_mesh("cpu", (count,)), "plain")
    processes = ShardingProcesses(dist.get_rank(), count, data=(dist.get_rank(), count))
    batch = data(torch.float32)[dist.get_rank()]
    live = LiveModule(net, [batch], model_step(F.cross_entropy), processes)
    with live.borrowed():
        resolve(live)
        gradient, _ = live.gradient()
    return float(live.rows.norms(gradient[:, None]))


CASES: dict[str, Any] = {
    "wide": wide,
    "collectives": collectives,
    "deadline": deadline,
    "unsynchronised": unsynchronised,
}


def _main(rank: int, out: str, count: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=count)
    found = {name: CASES[name]() if name in CASES else measured(name) for name in names}
    Path(f"{out}.{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    place, processes, *cases = sys.argv[1:]
    Path(f"{place}.store").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_main, (place, int(processes), cases), nprocs=int(processes))
