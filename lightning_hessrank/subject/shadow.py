"""The shadow: a deep copy of the user's module on which all measuring happens.

Two designs were weighed: measuring on the live module and putting everything back (every kind of
state that is forgotten disturbs training, and logged values cannot be taken back), and a copy that
is thrown away (costs one copy of the weights; only generators and global flags are shared). The
copy wins: what it does cannot reach the live module.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import measuring_dtype
from lightning_hessrank.subject.duplicate import MODULE_INTERNALS, duplicate
from lightning_hessrank.subject.trainer_view import TrainerView, detach_from_trainer


def shadow_copy(
    module: nn.Module, *, dtype: torch.dtype, device: torch.device, trainer: Any = None
) -> nn.Module:
    """Copy a module deeply, in ``dtype`` on ``device``, detached from its trainer.

    Args:
        module: any module; a compiled one is unwrapped.
        dtype: of floating parameters, buffers and plain tensor attributes; complex ones get the
            complex type of the same precision.
        device: of all tensors.
        trainer: a Lightning trainer that the copy may read, but not change.
    """
    module = getattr(module, "_orig_mod", module)
    trainers = [vars(part).get("_trainer") for part in module.modules()]
    shadow = duplicate(module, {id(x): TrainerView(x) for x in trainers if x is not None})

    def cast(x: Tensor) -> Tensor:
        return x.to(device, measuring_dtype(x.dtype, dtype))

    _cast(shadow, cast)
    for part in shadow.modules():
        if "_trainer" in vars(part):
            vars(part).update(_dtype=dtype, _device=device)  # a LightningModule remembers them
            detach_from_trainer(part, trainer)
    return shadow


def release(shadow: nn.Module) -> None:
    """Free the copy's storage now: reference cycles would keep it until the next collection."""
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        tensor.data = tensor.data.new_empty(0)


@contextmanager
def rewound(shadow: nn.Module) -> Iterator[None]:
    """Let code inside change buffers, attributes and generators of a copy, and forget the changes.

    Buffers (running statistics) are exchanged for clones, not overwritten, since a retained graph
    may hold them. Containers are restored one level deep.
    """
    kept = [(part, dict(vars(part)), dict(part._buffers)) for part in shadow.modules()]
    restore: list[Callable[[], object]] = []
    for part, attributes, buffers in kept:
        for name, buffer in buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.clone()
        for name, value in attributes.items():
            if name not in MODULE_INTERNALS:
                restore += _restorers(value)
    try:
        yield
    finally:
        for part, attributes, buffers in kept:
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.update(buffers)
        for put_back in restore:
            put_back()


def _restorers(value: Any) -> list[Callable[[], object]]:
    if isinstance(value, torch.Generator):
        torch_state = value.get_state()
        return [lambda: value.set_state(torch_state)]
    if isinstance(value, np.random.Generator):
        bits, numpy_state = value.bit_generator, value.bit_generator.state
        return [lambda: setattr(bits, "state", numpy_state)]
    if isinstance(value, np.random.RandomState):
        old_state = value.get_state()
        return [lambda: value.set_state(old_state)]
    if isinstance(value, random.Random):
        python_state = value.getstate()
        return [lambda: value.setstate(python_state)]
    if type(value) is list:
        items = list(value)
        return [lambda: value.__setitem__(slice(None), items)]
    if type(value) in (dict, set):
        content = value.copy()
        return [lambda: (value.clear(), value.update(content))]
    return []


def _cast(module: nn.Module, cast: Callable[[Tensor], Tensor]) -> None:
    """Cast parameters, buffers, plain tensor attributes, and modules hidden in plain containers."""
    module._apply(cast)
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in MODULE_INTERNALS:
                vars(part)[name] = _cast_value(value, cast)


def _cast_value(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, nn.Parameter):
        value.data = cast(value.data)
        return value
    if isinstance(value, Tensor):
        return cast(value)
    if isinstance(value, nn.Module):
        _cast(value, cast)
        return value
    if type(value) in (list, tuple):
        items = type(value)(_cast_value(x, cast) for x in value)
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return items
    if type(value) is dict:
        for key, item in value.items():
            value[key] = _cast_value(item, cast)
    return value
