"""Reference data: the same samples at every measurement of a run, across resume too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_hessrank.live.batch import batch_size, clone_batch, cut_batch, list_tensors
from lightning_hessrank.live.isolation import preserved_rng

#: Larger reference data are not saved with a checkpoint; their fingerprint is.
MAX_SAVED_BYTES = 16 * 2**20


class ReferenceData:
    """Batches kept for measuring.

    Args:
        batches: copies that nobody else changes.
    """

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    @classmethod
    def collect(cls, batches: Iterable[Any], max_samples: int | None) -> ReferenceData:
        """Copy batches until ``max_samples`` are kept (``None``: all); the last one is cut.

        Raises:
            ValueError: there is no batch, or one is empty or has no batch dimension.
        """
        kept: list[Any] = []
        missing = max_samples
        with preserved_rng():  # a shuffling loader draws from the global generator
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
        return cls(kept)

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(batch_size(batch) for batch in self.batches)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in list_tensors(self.batches))

    def fingerprint(self) -> str:
        """SHA-256 over shape, type and content of every tensor, in order."""
        digest = hashlib.sha256()
        for tensor in list_tensors(self.batches):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: builtin types and tensors only."""
        state: dict[str, Any] = {"fingerprint": self.fingerprint()}
        if self.num_bytes <= MAX_SAVED_BYTES and _is_plain(self.batches):
            state["batches"] = self.batches
        return state


def as_batches(data: Any, transfer: Callable[[Any], Any]) -> Iterable[Any]:
    """Return the batches of the user's ``data``: a ``DataLoader``, or one batch."""
    return map(transfer, data if isinstance(data, DataLoader) else [data])


def _is_plain(value: Any) -> bool:
    """Whether a weights-only load accepts it."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return type(value) is Tensor or value is None or type(value) in (int, float, bool, str)
