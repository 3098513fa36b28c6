"""Spawned processes for the tests of sharded modules: ``python -m tests.sharded.processes``.

Runs cases without a Trainer, and runs of training, and writes what each process finds to
``OUT.<case>.<rank>``. Starting processes and importing PyTorch in them takes longer than most
cases, so the processes of one launch are forked from one that has imported everything, and run all.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hessrank.network.batches import list_tensors
from lightning_hessrank.processes import ShardingProcesses
from lightning_hessrank.sharded import estimate
from lightning_hessrank.sharded.differences import DifferenceOperator, product, resolve
from lightning_hessrank.sharded.estimate import sharded_ranks
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.sharded.shards import ShardProbes
from lightning_hessrank.subject.step import model_step
from tests.sharded import training
from tests.sharded.networks import BUILD, MLP, build, data, precision, shard
from tests.training import QUIET

ROOT = Path(__file__).parents[2]


def once(factory: pytest.TempPathFactory, place: str, names: Sequence[str]) -> Path:
    """Launch once in a session, also where several workers share its tests; return where."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / place
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not (folder / "done").exists():
            launch(folder / "run", *names)
            (folder / "done").touch()
    return folder / "run"


def launch(out: Path, *names: str) -> None:
    """Run cases and runs of training by their names, and fail with what the processes say."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded.processes", str(out), *names],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def findings(out: Path, name: str) -> list[Any]:
    """What each process found."""
    return [pickle.loads(Path(f"{out}.{name}.{i}").read_bytes()) for i in range(needed(name))]


def needed(name: str) -> int:
    """Processes that a case needs."""
    return 4 if name in ("hybrid", "tensor") else 2


class Sharded:
    """A sharded network of one process, with its share of the data."""

    def __init__(self, name: str) -> None:
        rank, count = dist.get_rank(), dist.get_world_size()
        shares = count
        if name == "tensor":
            shares = 2
            names = ("data_parallel", "tensor_parallel")
            mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=names)
            share = mesh["data_parallel"].get_local_rank()
        elif name == "hybrid":
            names = ("replicated", "sharded")
            mesh, share = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=names), rank
        else:
            mesh, share = init_device_mesh("cpu", (count,)), rank
        dtype = precision(name)
        self.net = build(name).to(dtype)
        shard(self.net, mesh, name)
        self.processes = ShardingProcesses(rank, count, data=(share, shares))
        self.batch = data(dtype, shares)[share]
        self.trainer = None
        if name == "autocast":
            self.trainer = pl.Trainer(**QUIET, precision="bf16-mixed")
        if name == "accumulated":  # between two micro-batches
            self.net.set_requires_gradient_sync(False)
            F.cross_entropy(self.net(self.batch[0]), self.batch[1]).backward()

    def live(self) -> LiveModule:
        step = model_step(F.cross_entropy, watched=False)
        return LiveModule(self.net, [self.batch], step, self.processes, trainer=self.trainer)


def measured(name: str) -> dict[str, Any]:
    """Products, an estimate and what is stored."""
    case = Sharded(name)
    with recorded(estimate, "resolve") as resolutions:
        ranks = sharded_ranks(case.live())
    live, (resolution,) = case.live(), resolutions
    with live.borrowed():
        vectors = ShardProbes(live.rows, 5).columns(0, 2)
        products = DifferenceOperator(live, resolution).matmat(vectors)
    whole = [
        [x.full_tensor() if hasattr(x, "full_tensor") else x for x in _as_parameters(live, column)]
        for block in (vectors, products)
        for column in block.unbind(1)
    ]
    return {
        "resolution": resolution,
        "vectors": [torch.cat([x.flatten() for x in column]) for column in whole],
        "ranks": ranks,
        "stored": live.rows.count,
        "dim": live.rows.dim,
    }


@contextmanager
def recorded(place: Any, name: str) -> Iterator[list[Any]]:
    """Keep what a function returns."""
    function, kept = getattr(place, name), []

    def recording(*args: Any, **options: Any) -> Any:
        kept.append(function(*args, **options))
        return kept[-1]

    setattr(place, name, recording)
    try:
        yield kept
    finally:
        setattr(place, name, function)


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
    return MLP(50_000)


def wide() -> float:
    """Norm of the gradient of a wide float32 network, once it is checked."""
    count, net = dist.get_world_size(), wide_network()
    shard(net, init_device_mesh("cpu", (count,)), "plain")
    processes = ShardingProcesses(dist.get_rank(), count, data=(dist.get_rank(), count))
    batch = data(torch.float32)[dist.get_rank()]
    step = model_step(F.cross_entropy, watched=False)
    live = LiveModule(net, [batch], step, processes)
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
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning starts no processes of its own
    dist.init_process_group(
        "gloo", init_method=f"file://{out}.store{count}", rank=rank, world_size=count
    )
    for name in names:
        if name in CASES:
            found = CASES[name]()
        else:
            found = measured(name) if name in BUILD else training.train(name)
        Path(f"{out}.{name}.{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    place, *cases = sys.argv[1:]
    for size in (2, 4):
        if mine := [name for name in cases if needed(name) == size]:
            Path(f"{place}.store{size}").unlink(missing_ok=True)
            torch.multiprocessing.start_processes(
                _main, (place, size, mine), nprocs=size, start_method="fork"
            )
