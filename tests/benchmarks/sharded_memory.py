"""What a measurement of a sharded module keeps on each process.

``python -m tests.benchmarks.sharded_memory`` spawns 1, 2 and 4 gloo processes, shards a network of
a million parameters, and measures it with 48 products. Prints, as a Markdown table, the bytes that
the Krylov basis has by reckoning, and how much the resident memory of each process grew at most.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from lightning_hessrank.budget import Plan
from lightning_hessrank.processes import ShardingProcesses
from lightning_hessrank.sharded.estimate import sharded_ranks
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.subject.step import model_step
from tests.benchmarks.engine import table
from tests.sharded.networks import MLP, shard

PRODUCTS = 48


class Peak:
    """Largest resident memory of this process inside, in bytes above that at the start."""

    def __enter__(self) -> Peak:
        self.first = self.largest = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.largest - self.first

    def _watch(self) -> None:
        while not self._over.is_set():
            self.largest = max(self.largest, self._now())
            time.sleep(0.01)

    @staticmethod
    def _now() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def _measure(rank: int, folder: str, count: int, width: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    net = MLP(width)
    shard(net, init_device_mesh("cpu", (count,)), "plain")
    batch = torch.randn(8, 4), torch.randint(0, 3, (8,))
    processes = ShardingProcesses(rank, count, data=(rank, count))
    live = LiveModule(net, [batch], model_step(F.cross_entropy), processes)
    with Peak() as peak:
        found = sharded_ranks(live, plan=Plan("lanczos", max_products=PRODUCTS), rtol=1e-1)
    Path(f"{folder}/{rank}").write_text(
        f"{live.rows.count} {peak.grown} {found.total.num_products}"
    )
    dist.destroy_process_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=100_000)
    arguments = parser.parse_args()
    rows = [("processes", "parameters on each", "products", "basis MiB", "resident MiB")]
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_measure, (folder, count, arguments.width), nprocs=count)
            found = [Path(folder, str(i)).read_text().split() for i in range(count)]
        kept = max(int(x[0]) for x in found)
        products = int(found[0][2])
        basis, grown = 8 * kept * products / 2**20, max(int(x[1]) for x in found) / 2**20
        rows.append((f"{count}", f"{kept:,}", f"{products}", f"{basis:.0f}", f"{grown:.0f}"))
        print(*rows[-1], flush=True)
    table(rows)


if __name__ == "__main__":
    main()
