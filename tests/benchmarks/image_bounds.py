"""Bounds of torchvision's networks on images of 224 pixels, and of a recurrent network.

``python -m tests.benchmarks.image_bounds [NAME …] [--seconds 60] [--json FILE]`` needs torchvision,
which is no dependency of the project. Each network runs in a process of its own, one thread, which
is ended after so many CPU seconds; prints a Markdown table of CPU seconds, peak memory of the
process, and the bound or why there is none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank import BoundNotAvailableError, __version__, rank_bound
from tests.benchmarks import records
from tests.benchmarks.engine import machine

NAMES = (
    *("resnet18", "resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121"),
    *("convnext_tiny", "vit_b_16", "lstm"),
)
COLUMNS = ("network", "p", "CPU s", "peak GiB", "bound")


class Recurrent(nn.Module):
    """An LSTM of 256 cells and a layer that reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(64, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def one(name: str, seconds: int) -> dict[str, Any]:
    """Seek the bound of a network; whatever ends it is told."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if name == "lstm":
        net, x = Recurrent(), torch.randn(2, 50, 64)
    else:
        net = getattr(importlib.import_module("torchvision.models"), name)()
        x = torch.randn(2, 3, 224, 224)
    began = time.process_time()
    try:
        bound = rank_bound(net.eval(), x, loss="cross_entropy")
        told = f"{bound.total:,} ({bound.kind}{', theorem' if bound.is_theorem else ''})"
    except BoundNotAvailableError as error:
        told = f"refused: {error}"
    return {
        "network": name,
        "p": f"{sum(p.numel() for p in net.parameters()):,}",
        "CPU s": round(time.process_time() - began, 1),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "bound": told,
    }


def main() -> None:
    """Seek the bounds of all networks, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help="of a single network, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.names[0], given.seconds)))
        return
    table = [list(COLUMNS)]
    for name in given.names or NAMES:
        command = [sys.executable, "-m", __spec__.name, name, "--one"]
        done = subprocess.run(
            [*command, "--seconds", str(given.seconds)], capture_output=True, text=True, check=False
        )
        told = f"ended ({done.returncode}) {done.stderr.strip().splitlines()[-1:]}"
        found = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else {"bound": told}
        table.append([str({"network": name, **found}.get(column, "")) for column in COLUMNS])
    print(records.markdown(table))
    if given.json:
        records.TABLES["image_bounds"] = [table]
        torch.set_num_threads(1)  # as those that were measured
        records.write(given.json, machine(), __version__)


if __name__ == "__main__":
    main()
