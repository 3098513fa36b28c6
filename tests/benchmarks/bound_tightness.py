"""How tight the bounds are: bound / exact rank over random small networks, per kind of bound.

    python -m tests.benchmarks.bound_tightness [number of networks]

The generator is that of the tests (seeded); nine in ten of its networks have a bottleneck, a 1×1
convolution, a two-layer or a pooled head. ``formula`` is the patch bound as large networks get it,
``patch`` samples the column blocks of small layers, ``generic`` is the exact generic rank.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch

from tests.architectures import random_case
from tests.oracles import exact_ranks
from tests.system.test_sweep import bounds_of

PARTS = ("functional", "outer", "total")
LOOSE = {"bottleneck", "pointwise", "pooled"}


def ratios(count: int) -> Iterator[tuple[frozenset[str], dict[tuple[str, str], float]]]:
    """For each network its features, and bound / exact per kind and part."""
    for seed in range(10_000, 10_000 + count):
        case = random_case(seed, max_parameters=400)
        exact = exact_ranks(case.model, case.inputs, case.loss)
        if not exact["functional"]:
            continue
        found = {}
        for kind, bound in bounds_of(case).items():
            for part in PARTS:
                found[kind, part] = getattr(bound, part) / exact[part]
        yield case.features, found


def main(count: int) -> None:
    """Print the table."""
    torch.set_default_dtype(torch.float64)
    results = list(ratios(count))
    share = np.mean([bool(features & LOOSE) for features, _ in results])
    print(f"{len(results)} networks, {share:.0%} with a bottleneck, 1×1 convolution or pooled head")
    print(f"{'kind':<9} {'part':<11} {'minimum':>8} {'median':>8} {'95 %':>8} {'maximum':>8}")
    for kind, part in results[0][1]:
        values = np.array([found[kind, part] for _, found in results])
        low, middle, high, top = np.percentile(values, [0, 50, 95, 100])
        print(f"{kind:<9} {part:<11} {low:>8.3f} {middle:>8.3f} {high:>8.3f} {top:>8.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
