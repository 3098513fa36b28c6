"""How much memory there is, how much a graph holds, and whether an error means there was none."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lightning_hessrank.network.autograd import graph_nodes

#: Share of the free memory that a measurement may take when no limit is given.
FREE_SHARE = 0.5

#: Names of graph nodes whose result is a view of their input.
_VIEW = re.compile(
    r"(Unsafe)?(View|Expand|Unsqueeze|Squeeze|Transpose|T|Permute|Slice|Select|Split|Unbind|Alias|"
    r"AsStrided|ReshapeAlias|Diagonal|Unfold)(WithSizes|Copy)?Backward\d+$"
)


def memory_limit(device: torch.device) -> int:
    """Bytes that a measurement may take on ``device`` by default: half of what is free now."""
    return int(FREE_SHARE * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes free on ``device``; a container's limit counts."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(_free_in_system(), _free_in_cgroup())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; CPU allocators raise plain RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        phrase in text
        for phrase in (
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "alloc failed",
        )
    )


def graph_bytes(outputs: Iterable[Tensor]) -> int:
    """Bytes of the intermediate results in the autograd graph behind ``outputs``.

    Counted from their shapes: to look at what is saved would trigger recomputation where gradients
    are checkpointed. Views and parameters do not count.
    """
    return sum(
        math.prod(m.shape) * m.dtype.itemsize
        for node in graph_nodes(outputs)
        if node.next_functions and not _VIEW.match(node.name())  # a leaf's accumulator has none
        for m in node._input_metadata
    )


def _free_in_system() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**19
    return pages * (os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096) // 2


def _free_in_cgroup() -> int:
    """Bytes left of a control group's limit (version 2, then 1); huge where there is none."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            return max(0, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return 2**62
