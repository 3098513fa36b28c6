"""How many threads a matrix is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Eigenvalues of smaller matrices are computed on one thread. Two threads save at most half of a
#: second there; where another program wants the second core, they wait for each other: on a busy
#: machine with two cores ``eigvalsh`` of 1,210 rows took 0.3 s on one thread and 2.6 s on two.
WORTH_THREADS = 2048


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Compute with a ``size × size`` matrix on one thread if it is small, else on all there are."""
    before = torch.get_num_threads()
    if size >= WORTH_THREADS or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
