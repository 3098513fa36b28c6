"""Reference data: the same samples at every measurement of a run, across resume too."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_hessrank.network.batches import (
    batch_size,
    clone_batch,
    cut_batch,
    fingerprint,
    map_tensors,
    num_bytes,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.subject.isolation import frozen_rng

#: Larger reference data are not saved with a checkpoint; their fingerprint is.
MAX_SAVED_BYTES = 16 * 2**20


class ReferenceData:
    """The batches on which a run is measured, and this process's share of them.

    Args:
        shares: for each process its batches, copies that nobody else changes; only this process's
            own where the others' are too large to hold.
        processes: that measure together.
        num_samples: of all processes.
        fingerprint: of all processes' batches.
    """

    def __init__(
        self,
        shares: dict[int, list[Any]],
        processes: Processes,
        num_samples: int,
        fingerprint: str,
    ) -> None:
        self._shares = shares
        self._count = processes.count
        self.batches = shares[processes.rank]
        self.num_samples = num_samples
        self.fingerprint = fingerprint
        self.is_cut = False
        """Whether samples of a batch were left out."""

    @property
    def everyone(self) -> list[Any] | None:
        """The batches of all processes, or ``None`` where they are too large to hold."""
        if len(self._shares) < self._count:
            return None
        return [batch for rank in sorted(self._shares) for batch in self._shares[rank]]

    @classmethod
    def gather(cls, batches: list[Any], processes: Processes) -> ReferenceData:
        """Make reference data of the batches that every process has collected."""
        shares = {processes.rank: batches}
        prints = processes.gather(fingerprint(batches))
        sizes = processes.gather((sum(map(batch_size, batches)), num_bytes(batches)))
        if sum(nbytes for _, nbytes in sizes) <= MAX_SAVED_BYTES:
            held = map_tensors(batches, lambda x: x.cpu()) if processes.count > 1 else batches
            shares.update(
                (rank, share)
                for rank, share in enumerate(processes.gather(held))
                if rank != processes.rank
            )
        return cls(shares, processes, sum(n for n, _ in sizes), _combined(prints))

    @classmethod
    def load(cls, state: dict[str, Any], processes: Processes) -> ReferenceData | None:
        """Take up what a checkpoint kept; ``None`` where the data were too large for it.

        Saved by another number of processes, the batches are dealt out anew.
        """
        saved: list[list[Any]] | None = state.get("batches")
        if saved is None:
            return None
        if len(saved) != processes.count:
            every = [batch for share in saved for batch in share]
            if len(every) < processes.count:
                return None
            saved = [every[i :: processes.count] for i in range(processes.count)]
        shares = dict(enumerate(saved))
        return cls(shares, processes, state["num_samples"], state["fingerprint"])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: builtin types and tensors only."""
        state: dict[str, Any] = {"fingerprint": self.fingerprint, "num_samples": self.num_samples}
        shares = [self._shares[i] for i in sorted(self._shares)]
        if (
            len(shares) == self._count
            and num_bytes(shares) <= MAX_SAVED_BYTES
            and _is_plain(shares)
        ):
            state["batches"] = shares
        return state


def collect(batches: Iterable[Any], max_samples: int | None, *, seed: int = 0) -> list[Any]:
    """Copy batches until ``max_samples`` are kept (``None``: all); the last one is cut.

    A shuffling loader draws the same samples whenever it is asked with the same seed.

    Raises:
        ValueError: there is no batch, or one is empty or has no batch dimension.
    """
    kept: list[Any] = []
    missing = max_samples
    with frozen_rng(seed):
        for batch in batches:
            size = batch_size(batch)
            taken = size if missing is None else min(size, missing)
            kept.append(clone_batch(cut_batch(batch, taken)))
            if missing is not None:
                missing -= taken
                if missing == 0:
                    break
    if not kept:
        raise ValueError("the reference data have no batches; pass data=... with at least one")
    return kept


def as_batches(data: Any, transfer: Callable[[Any], Any]) -> Iterable[Any]:
    """Return the batches of the user's ``data``: a ``DataLoader``, or one batch.

    The loader may be the one that training runs on: its persistent workers and its generators are
    left alone.
    """
    if not isinstance(data, DataLoader):
        yield transfer(data)
        return
    loader = copy.copy(data)
    loader._iterator = None
    drawn_from = {
        id(g): g
        for owner in (loader, loader.sampler, loader.batch_sampler)
        if isinstance(g := getattr(owner, "generator", None), torch.Generator)
    }
    states = [(g, g.get_state()) for g in drawn_from.values()]
    try:
        yield from map(transfer, loader)
    finally:
        for generator, state in states:
            generator.set_state(state)


def deal(batches: list[Any], max_samples: int | None, processes: Processes) -> list[Any]:
    """Return this process's share of batches that every process has collected by itself.

    Where all have the same ones they are dealt out, if there are enough for everyone (else all
    keep them: the mean is the same); where each has its own, it keeps its share of ``max_samples``.
    """
    if processes.count == 1:
        return batches
    if len(set(processes.gather(fingerprint(batches)))) > 1:
        return collect(batches, share(max_samples, processes))
    return (
        batches[processes.rank :: processes.count] if len(batches) >= processes.count else batches
    )


def share(max_samples: int | None, processes: Processes) -> int | None:
    """Return how many of ``max_samples`` samples in all this process takes, at least one."""
    if max_samples is None:
        return None
    extra = int(processes.rank < max_samples % processes.count)
    return max(1, max_samples // processes.count + extra)


def _combined(fingerprints: list[str]) -> str:
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether a weights-only load accepts it."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return type(value) is Tensor or value is None or type(value) in (int, float, bool, str)
