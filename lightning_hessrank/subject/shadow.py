"""The shadow: a deep copy of the user's module on which all measuring happens.

Two designs were weighed: measuring on the live module and putting everything back (every kind of
state that is forgotten disturbs training, and logged values cannot be taken back), and a copy that
is thrown away (costs one copy of the weights; only generators and global flags are shared). The
copy wins: what it does cannot reach the live module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import measuring_dtype
from lightning_hessrank.subject.duplicate import duplicate
from lightning_hessrank.subject.rebind import rebind
from lightning_hessrank.subject.state import holders
from lightning_hessrank.subject.trainer_view import TrainerView, detach_from_trainer


def shadow_copy(
    module: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trainer: Any = None,
    beyond: Collection[int] = (),
) -> nn.Module:
    """Copy a module deeply, in ``dtype`` on ``device``, detached from its trainer.

    Args:
        module: any module; a compiled one is unwrapped.
        dtype: of floating parameters, buffers and plain tensors; complex ones get the complex type
            of the same precision.
        device: of all tensors.
        trainer: a Lightning trainer that the copy may read, but not change.
        beyond: ids of objects that are the live module's (:func:`reached_from`), not the copy's.
    """
    module = getattr(module, "_orig_mod", module)
    views = {id(x): TrainerView(x) for x in _trainers_of(module)}
    if trainer is not None:
        views.setdefault(id(trainer), TrainerView(trainer))
    memo: dict[int, Any] = dict(views)
    with torch.no_grad():  # scripted modules clone parameters like any tensor, and keep no flag
        shadow = duplicate(module, memo)
    for live, own in zip(module.parameters(), shadow.parameters(), strict=True):
        if own.requires_grad != live.requires_grad:
            own.requires_grad_(live.requires_grad)
    rebind(shadow, memo, beyond=beyond)
    for view in views.values():
        view.show(shadow)
    _cast(shadow, dtype, device, beyond)
    for part in shadow.modules():
        if "_trainer" in vars(part):
            vars(part).update(_dtype=dtype, _device=device)  # a LightningModule remembers them
            detach_from_trainer(part, None if trainer is None else views[id(trainer)])
    return shadow


def reached_from(module: nn.Module) -> Mapping[int, Any]:
    """Return all objects that a module refers to, by id; not its trainer and what that knows."""
    module = getattr(module, "_orig_mod", module)
    beyond = {id(x) for x in _trainers_of(module)}
    reached = {id(module): module}
    for holder in holders(module, beyond=beyond):
        reached[id(holder.owner)] = holder.owner
        reached.update((id(x), x) for x in holder.children)
    return reached


def release(shadow: nn.Module) -> None:
    """Free the copy's storage now: reference cycles would keep it until the next collection."""
    for tensor in (*shadow.parameters(), *shadow.buffers()):
        tensor.data = tensor.data.new_empty(0)


def _trainers_of(module: nn.Module) -> list[Any]:
    found = (vars(part).get("_trainer") for part in module.modules())
    return list({id(x): x for x in found if x is not None}.values())


def _cast(
    shadow: nn.Module, dtype: torch.dtype, device: torch.device, beyond: Collection[int]
) -> None:
    """Cast all tensors that the copy refers to; parameters stay the same objects."""
    done: dict[int, tuple[Any, Tensor]] = {}

    def cast(x: Tensor) -> Tensor:
        return x.to(device, measuring_dtype(x.dtype, dtype))

    def replace(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in beyond:
            return value
        if isinstance(value, nn.Parameter):
            value.data = cast(value.data)
            return value
        if id(value) not in done:
            done[id(value)] = value, cast(value)
        return done[id(value)][1]

    shadow._apply(cast)  # modules may do more than that on a cast (recurrent layers do)
    for _ in holders(shadow, beyond=beyond, replace=replace):
        pass
