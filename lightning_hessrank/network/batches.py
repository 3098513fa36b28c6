"""Batches of any structure: copied, cast, cut and counted without changing the user's objects."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a copy of ``batch`` with ``function`` applied to every tensor in it.

    Goes through dicts, lists, tuples, named tuples, dataclasses and the attributes of any other
    object (shallow copies; objects that hold no tensor, and modules, are shared). A tensor or
    object that occurs twice occurs twice in the copy.
    """
    return _Mapper(function)(batch)


class _Mapper:
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self._function = function
        # id -> (original, result); the original is kept alive so that its id stays its own
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._done:
            self._done[id(value)] = value, value  # what a cycle of containers leads back to
            self._done[id(value)] = value, self._map(value)
        return self._done[id(value)][1]

    def _map(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._function(value)
        if isinstance(value, Mapping):
            return _with_items(value, {k: self(v) for k, v in value.items()})
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self, value))
        return self._map_attributes(value) if list_tensors(value) else value

    def _map_attributes(self, value: Any) -> Any:
        copied = copy.copy(value)
        self._done[id(value)] = value, copied  # an object may know itself
        for name, old in _attributes(value).items():
            object.__setattr__(copied, name, self(old))  # also where the class is frozen
        return copied


def _with_items(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a copy of a mapping with other items under the same keys."""
    if type(mapping) is dict:
        return items
    if not hasattr(type(mapping), "__setitem__"):  # what cannot be changed is made anew
        return type(mapping)(items)  # type: ignore[call-arg]
    copied: Any = copy.copy(mapping)
    for key, item in items.items():  # one by one: ModelOutput of transformers forbids update
        copied[key] = item
    return copied


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds, in ``__dict__`` or slots; modules and classes are left alone."""
    if isinstance(value, (type, ModuleType, nn.Module)):
        return {}
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                found[name] = getattr(value, name)
    return found


def list_tensors(batch: Any) -> list[Tensor]:
    """Return every tensor in ``batch`` once, in a fixed order."""
    return [tensor for tensor, _ in _walk(batch, {})]


def _walk(value: Any, seen: dict[int, Any], depth: int = 0) -> Iterator[tuple[Tensor, int]]:
    """Yield tensors, and how many containers each is in."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value, depth
        return
    if isinstance(value, Mapping):
        children: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        children = _attributes(value).values()
    for child in children:
        yield from _walk(child, seen, depth + 1)


def clone_batch(batch: Any) -> Any:
    """Copy ``batch`` so that no later change in place reaches the copy."""
    return map_tensors(batch, lambda x: x.detach().clone())


def cast_batch(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Move every tensor to ``device``, floating ones to ``dtype``; integers keep their type.

    Complex ones get the complex type of the same precision; ones made in inference mode are copied,
    since autograd cannot take them.
    """

    def cast(x: Tensor) -> Tensor:
        return (x.clone() if x.is_inference() else x).to(device, measuring_dtype(x.dtype, dtype))

    return map_tensors(batch, cast)


def measuring_dtype(own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor where all is measured in ``dtype``; integers keep theirs."""
    if own.is_floating_point:
        return dtype
    return _COMPLEX.get(dtype, own) if own.is_complex else own


def batch_size(batch: Any) -> int:
    """Return the number of samples: the size that most first dimensions have, or the first.

    Only the tensors in the fewest containers count: further down there may be several a sample
    (boxes of an image). Tensors that are not per sample (class weights) are outvoted.

    Raises:
        ValueError: ``batch`` holds no tensor with a dimension, or is empty.
    """
    found = [(x.shape[0], depth) for x, depth in _walk(batch, {}) if x.ndim > 0]
    if not found:
        raise ValueError(
            f"no tensor with a batch dimension in the reference batch (a {type(batch).__name__}); "
            "pass data=... with tensors of shape (samples, ...)"
        )
    least = min(depth for _, depth in found)
    ((size, _),) = Counter(size for size, depth in found if depth == least).most_common(1)
    if size == 0:
        raise ValueError("the reference batch is empty; pass data=... with at least one sample")
    return size


def join_batches(one: Any, two: Any, sizes: tuple[int, int]) -> Any:
    """Return one batch with the samples of two; what is not per sample has to be equal in both.

    Raises:
        ValueError: their structures or shapes do not fit together.
    """
    tensors, others = list_tensors(one), list_tensors(two)
    if len(tensors) != len(others):
        raise ValueError("batches of different structure cannot be joined")
    joined = {id(x): _joined(x, y, sizes) for x, y in zip(tensors, others, strict=True)}
    return map_tensors(one, lambda x: joined[id(x)])


def _joined(one: Tensor, two: Tensor, sizes: tuple[int, int]) -> Tensor:
    if _is_per_sample(one, sizes[0]) and _is_per_sample(two, sizes[1]):
        if one.shape[1:] == two.shape[1:] and one.layout is two.layout is torch.strided:
            return torch.cat([one, two])
    elif one.shape == two.shape and one.layout is torch.strided and torch.equal(one, two):
        return one
    raise ValueError(
        f"tensors of shapes {tuple(one.shape)} and {tuple(two.shape)} cannot be joined"
    )


def cut_batch(batch: Any, size: int, full: int | None = None) -> Any:
    """Keep the first ``size`` samples of every tensor and list that has one entry a sample.

    Objects other than containers and dataclasses are kept whole: what a slice of them means is
    theirs to know (a graph batch, say).

    Args:
        batch: to cut.
        size: samples to keep.
        full: samples that it has; ``None``: as :func:`batch_size` finds.
    """
    full = batch_size(batch) if full is None else full
    return batch if size >= full else slice_batch(batch, 0, size, full)


def slice_batch(batch: Any, start: int, stop: int, full: int | None = None) -> Any:
    """Keep samples ``start:stop`` in the same way."""
    return _cut(batch, batch_size(batch) if full is None else full, slice(start, stop))


def _cut(batch: Any, full: int, kept: slice) -> Any:
    if isinstance(batch, Tensor):
        return _cut_tensor(batch, kept) if _is_per_sample(batch, full) else batch
    if isinstance(batch, Mapping):
        return _with_items(batch, {k: _cut(v, full, kept) for k, v in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(x, full, kept) for x in batch))
    if isinstance(batch, (list, tuple)):
        if len(batch) == full and not any(_is_per_sample(x, full) for x in batch):
            return batch[kept]
        return type(batch)(_cut(x, full, kept) for x in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        record: Any = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(record, field.name, _cut(getattr(batch, field.name), full, kept))
        return record
    return batch


def _is_per_sample(value: Any, full: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == full


def _cut_tensor(tensor: Tensor, kept: slice) -> Tensor:
    if tensor.layout is torch.strided:
        return tensor[kept].clone()
    return tensor.index_select(0, torch.arange(kept.start, kept.stop, device=tensor.device))


def num_bytes(batches: Any) -> int:
    """Bytes of all tensors, as they are stored."""
    parts = (part for x in list_tensors(batches) for part in stored(x))
    return sum(x.numel() * x.element_size() for x in parts)


def fingerprint(batches: Any) -> str:
    """SHA-256 over shape, type and content of every tensor, in order."""
    digest = hashlib.sha256()
    for tensor in list_tensors(batches):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        for part in stored(tensor):
            content = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().data)
    return digest.hexdigest()


def stored(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that a tensor is stored in: a sparse one's indices and values."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)
