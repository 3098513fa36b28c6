"""What has to be known of FSDP2: which units there are, how they rest, and what they reduce.

The one place that reads ``fully_shard``'s inner state, for which it has no public names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_hessrank.processes import Processes

#: What every gradient of a measurement needs, whatever training has set.
_SETTINGS: dict[str, Any] = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "reshard_after_backward": True,
    "gradient_divide_factor": None,
    "_partial_reduce_output": None,
}


class Units:
    """The parts of a module that ``fully_shard`` was applied to."""

    def __init__(self, module: nn.Module) -> None:
        parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self._states: list[Any] = list({id(s): s for s in map(_state_of, parts)}.values())
        self._parts: list[Any] = parts
        self._order: list[Any] = []
        """Groups in the order in which a whole forward pass gathered them."""

    def check_reduced(self, named: Sequence[tuple[str, Tensor]], processes: Processes) -> None:
        """Refuse trainable parameters that every share of the data has its own gradient of.

        Raises:
            ValueError: names the first.
        """
        if processes.data.count == 1:
            return
        managed = {id(x.sharded_param) for group in self._groups for x in group.fsdp_params}
        for name, parameter in named:
            if id(parameter) not in managed:
                raise ValueError(
                    f"parameter {name} is not under fully_shard, so that its gradient is not "
                    f"reduced over the {processes.data.count} shares of the data, in training "
                    "neither; apply fully_shard to the module that owns it, in configure_model"
                )

    def compute_dtypes(self) -> set[torch.dtype]:
        """Types that mixed-precision policies cast to, forward and in reductions."""
        policies = [group.mp_policy for group in self._groups]
        found = {x for p in policies for x in (p.param_dtype, p.reduce_dtype)}
        return {x for x in found if x is not None}

    def ids(self) -> set[int]:
        """Of the objects in which all this is kept."""
        return {id(x) for x in (*self._states, *self._groups)}

    def rest(self) -> None:
        """Free what is gathered, and end what an exception has left half-way."""
        for part, state in zip(self._parts, map(_state_of, self._parts), strict=True):
            if state._is_root and hasattr(part, "reset_iter_state"):  # torch ≥ 2.13
                part.reset_iter_state()
            elif state._is_root:
                state._state_ctx.iter_forward_root = None
                state._comm_ctx.post_forward_order.clear()
        for part in self._parts:
            part.reshard()

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Reduce every gradient inside; settings and accumulated gradients are put back."""
        settings = [
            (group, name, getattr(group, name))
            for group in self._groups
            for name in _SETTINGS
            if hasattr(group, name)
        ]
        parameters = [x for group in self._groups for x in group.fsdp_params]
        sums = [(x, x.unsharded_accumulated_grad) for x in parameters]
        gathered = [x._unsharded_param for x in parameters if hasattr(x, "_unsharded_param")]
        gradients = [(x, x.grad) for x in gathered]  # not reduced yet, of the reduction's own type
        contexts = list({id(s._state_ctx): s._state_ctx for s in self._states}.values())
        last = [(context, context.is_last_backward) for context in contexts]
        try:
            for group, name, _ in settings:
                setattr(group, name, _SETTINGS[name])
            for parameter, _ in sums:
                parameter.unsharded_accumulated_grad = None
            for tensor in gathered:
                tensor.grad = None
            for context in contexts:
                context.is_last_backward = True
            yield
        finally:
            for group, name, value in settings:
                setattr(group, name, value)
            for parameter, value in sums:
                parameter.unsharded_accumulated_grad = value
            for tensor, gradient in gradients:
                tensor.grad = gradient
            for context, flag in last:
                context.is_last_backward = flag

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run a forward pass; if it fails here, serve the gathers that other processes wait for.

        Their own forward pass then ends, and they learn of the failure behind it. Without a whole
        pass to go by, every unit is taken to be gathered once, in the order of the modules.
        """
        try:
            yield
        except Exception:
            missing = list(self._order or self._groups)
            for entered in self._entered():
                if entered in missing:
                    missing.remove(entered)
            for group in missing:
                group.unshard()
                group.wait_for_unshard()
                group._to_sharded()
            raise
        self._order = self._entered()

    def _entered(self) -> list[Any]:
        """Groups that the present forward pass has gathered, each as often as it was."""
        contexts = list({id(s._comm_ctx): s._comm_ctx for s in self._states}.values())
        done = [
            group for context in contexts for group in getattr(context, "post_forward_order", ())
        ]
        return done + [g for g in self._groups if g._training_state.name == "FORWARD"]

    @property
    def _groups(self) -> list[Any]:
        return [group for state in self._states for group in _groups_of(state)]


def _state_of(part: Any) -> Any:
    return part._get_fsdp_state()


def _groups_of(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)  # torch ≥ 2.12
    if several is not None:
        return list(several)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]
