"""The shadow: a deep copy of the user's module on which all measuring happens.

Two designs were weighed: measuring on the live module and putting everything back (every kind of
state that is forgotten disturbs training, and logged values cannot be taken back), and a copy that
is thrown away (costs one copy of the weights; only generators and global flags are shared). The
copy wins: what it does cannot reach the live module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_hessrank.live.batch import list_tensors, map_tensors

_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_SILENT_METHODS = ("log", "log_dict", "print")
_MANUAL_METHODS = ("manual_backward", "toggle_optimizer", "untoggle_optimizer")


class ManualOptimizationError(RuntimeError):
    """The step drives the optimiser itself, so that it is not a loss function."""


def shadow_copy(
    module: nn.Module, *, dtype: torch.dtype, device: torch.device, trainer: Any = None
) -> nn.Module:
    """Copy a module deeply, in ``dtype`` on ``device``, detached from its trainer.

    Attributes that cannot be copied (locks, open files, writers) are shared; tensors that belong to
    an autograd graph are replaced by NaN, so that using a stale one shows.

    Args:
        module: any module; a compiled one is unwrapped.
        dtype: of floating parameters, buffers and plain tensor attributes.
        device: of all tensors.
        trainer: a Lightning trainer that the copy may read, but not change.
    """
    module = getattr(module, "_orig_mod", module)
    shadow = _deepcopy(module)
    shadow.to(device=device, dtype=dtype)
    for part in shadow.modules():
        _cast_plain_attributes(part, dtype, device)
        if "_trainer" in vars(part):
            _detach_from_trainer(part, trainer)
    for parameter in shadow.parameters():
        parameter.grad = None
    return shadow


def release(shadow: nn.Module) -> None:
    """Free the copy's storage now: reference cycles would keep it until the next collection."""
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        tensor.data = tensor.data.new_empty(0)


@contextmanager
def scratch_buffers(shadow: nn.Module) -> Iterator[None]:
    """Let code inside change buffers (running statistics), and forget the changes.

    Buffers are exchanged for clones, not overwritten, since a retained graph may hold them.
    """
    kept = [(part, dict(part._buffers)) for part in shadow.modules()]
    for part, buffers in kept:
        for name, buffer in buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


def _deepcopy(module: nn.Module) -> nn.Module:
    trainers = [vars(part).get("_trainer") for part in module.modules()]
    memo: dict[int, Any] = {id(x): TrainerView(x) for x in trainers if x is not None}
    attributes = [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _MODULE_INTERNALS and name != "_trainer"
    ]
    for value in attributes:
        _poison_graph_tensors(value, memo)
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:  # probing each attribute copies it, so only where the direct way fails
        for value in attributes:
            _share_uncopyable(value, memo)
        return copy.deepcopy(module, memo)


def _poison_graph_tensors(value: Any, memo: dict[int, Any]) -> None:
    """Replace tensors that belong to an autograd graph, which ``deepcopy`` refuses, by NaN."""
    for tensor in list_tensors(value) if isinstance(value, (Tensor, list, tuple, dict)) else ():
        if not tensor.is_leaf:
            memo[id(tensor)] = torch.full_like(tensor.detach(), torch.nan)


def _share_uncopyable(value: Any, memo: dict[int, Any]) -> None:
    """Note the innermost objects (locks, open files, writers) that ``deepcopy`` trips over."""
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        children: list[Any] = []
        if isinstance(value, (list, tuple, set, frozenset)):
            children = list(value)
        elif isinstance(value, dict):
            children = list(value.values())
        if children:
            for child in children:
                _share_uncopyable(child, memo)
        else:
            memo[id(value)] = value


def _cast_plain_attributes(part: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    def cast(x: Tensor) -> Tensor:
        if isinstance(x, nn.Parameter):
            return x
        return x.to(device, dtype if x.is_floating_point() else x.dtype)

    for name, value in vars(part).items():
        if name not in _MODULE_INTERNALS and isinstance(value, (Tensor, list, tuple, dict)):
            vars(part)[name] = map_tensors(value, cast)


def _detach_from_trainer(part: nn.Module, trainer: Any) -> None:
    """Give a copied ``LightningModule`` a read-only trainer and logging that does nothing."""
    vars(part)["_trainer"] = None if trainer is None else TrainerView(trainer)
    for name in _SILENT_METHODS:
        vars(part)[name] = _nothing
    for name in _MANUAL_METHODS:
        vars(part)[name] = _refuse_manual_optimization


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _refuse_manual_optimization(*args: object, **kwargs: object) -> None:
    raise ManualOptimizationError(
        "training_step drives the optimiser by hand (manual optimisation), so it is not a loss "
        "function; pass loss_fn=... to the monitor: loss_fn(module, batch) -> scalar loss"
    )


class TrainerView:
    """Reads a trainer and never changes it; its loggers swallow everything."""

    def __init__(self, trainer: Any) -> None:
        object.__setattr__(self, "_viewed", trainer)

    def __getattr__(self, name: str) -> Any:
        if name in ("logger", "loggers"):
            return _SILENCE if name == "logger" else [_SILENCE]
        return getattr(object.__getattribute__(self, "_viewed"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"training_step sets trainer.{name}, which a measurement must not do; "
            "pass loss_fn=... to the monitor"
        )


class _Silence:
    """Answers every call and attribute with itself."""

    def __getattr__(self, name: str) -> _Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> _Silence:
        return self


_SILENCE = cast("Any", _Silence())
