"""Batches of any structure: copied, cast, cut and counted without changing the user's objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a copy of ``batch`` with ``function`` applied to every tensor in it.

    Goes through dicts, lists, tuples, named tuples, dataclasses and the attributes of any other
    object (shallow copies; objects that hold no tensor are shared).
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        items = {k: map_tensors(v, function) for k, v in batch.items()}
        if type(batch) is dict:
            return items
        copied = copy.copy(batch)
        copied.update(items)  # type: ignore[attr-defined]
        return copied
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(x, function) for x in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(x, function) for x in batch)
    if dataclasses.is_dataclass(batch) or _holds_tensors(batch):
        copied = copy.copy(batch)
        for name, value in vars(batch).items():
            object.__setattr__(copied, name, map_tensors(value, function))
        return copied
    return batch


def _holds_tensors(batch: Any) -> bool:
    if isinstance(batch, type) or not hasattr(batch, "__dict__"):
        return False
    return bool(list_tensors(list(vars(batch).values())))


def list_tensors(batch: Any) -> list[Tensor]:
    """Return every tensor in ``batch``, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def clone_batch(batch: Any) -> Any:
    """Copy ``batch`` so that no later change in place reaches the copy."""
    return map_tensors(batch, lambda x: x.detach().clone())


def cast_batch(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Move every tensor to ``device``, floating ones to ``dtype``; integers keep their type."""
    return map_tensors(batch, lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype))


def batch_size(batch: Any) -> int:
    """Return the number of samples: the first dimension of the first tensor that has one.

    Raises:
        ValueError: ``batch`` holds no tensor with a dimension, or is empty.
    """
    sizes = [x.shape[0] for x in list_tensors(batch) if x.ndim > 0]
    if not sizes:
        raise ValueError(
            f"no tensor with a batch dimension in the reference batch (a {type(batch).__name__}); "
            "pass data=... with tensors of shape (samples, ...)"
        )
    if sizes[0] == 0:
        raise ValueError("the reference batch is empty; pass data=... with at least one sample")
    return sizes[0]


def cut_batch(batch: Any, size: int) -> Any:
    """Keep the first ``size`` samples of every tensor and list that has one entry a sample.

    Objects other than containers and dataclasses are kept whole: what a slice of them means is
    theirs to know (a graph batch, say).
    """
    full = batch_size(batch)
    return batch if size >= full else _cut(batch, full, size)


def _cut(batch: Any, full: int, size: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:size].clone() if batch.ndim > 0 and batch.shape[0] == full else batch
    if type(batch) is dict:
        return {k: _cut(v, full, size) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(x, full, size) for x in batch))
    if type(batch) in (list, tuple):
        if len(batch) == full and not any(isinstance(x, (Tensor, list, dict)) for x in batch):
            return batch[:size]
        return type(batch)(_cut(x, full, size) for x in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {
            f.name: _cut(getattr(batch, f.name), full, size) for f in dataclasses.fields(batch)
        }
        copied = copy.copy(batch)
        for name, value in fields.items():
            object.__setattr__(copied, name, value)
        return copied
    return batch
