"""A copy of a module that runs whatever it is asked to, again and again, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_hessrank.network.batches import cast_batch
from lightning_hessrank.subject.isolation import (
    differentiable_twice,
    frozen_rng,
    own_figures,
    undisturbed,
)
from lightning_hessrank.subject.protection import WriteProtected
from lightning_hessrank.subject.shadow import reached_from, release, shadow_copy
from lightning_hessrank.subject.state import State

T = TypeVar("T")

_LIGHTNING = ("pytorch_lightning.", "lightning.")


class IsolatedModule:
    """A deep copy of a module in the measuring precision.

    The live module is read once, at construction; nothing done here reaches it. What the copy's
    code changes (buffers, attributes, generators) is put back after each run.

    Args:
        module: the live module.
        dtype: in which everything is computed.
        training: mode of the copy; ``None`` keeps the mode of every submodule as it is.
        seed: of the randomness inside; every run draws the same numbers.
        trainer: a Lightning trainer that the code may read.

    Raises:
        TypeError: a trainable parameter is complex.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        dtype: torch.dtype = torch.float64,
        training: bool | None = None,
        seed: int = 0,
        trainer: Any = None,
    ) -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_complex():
                raise TypeError(
                    f"parameter {name} is complex: the Hessian is that of real parameters; store "
                    "real and imaginary part and join them with torch.view_as_complex"
                )
        self.dtype = dtype
        self.device = _measuring_device(module)
        self._seed, self._trainer = seed, trainer
        live = reached_from(module)  # kept meanwhile, so that their ids stay their own
        with undisturbed():
            self.shadow = shadow_copy(
                module, dtype=dtype, device=self.device, trainer=trainer, beyond=live
            )
        own = {id(p) for p in self.shadow.parameters()}
        # held, so that no other tensor gets the id of one that is gone
        self.live = {id(p): p for p in module.parameters() if id(p) not in own}
        """The live module's own parameters by their ids."""
        self.modes = {part: part.training for part in self.shadow.modules()}
        """Which parts the live module has in training mode."""
        if training is not None:
            set_mode(self.shadow, training)
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in self.shadow.modules())
        named = self.shadow.named_parameters()
        self.parameters: dict[str, Tensor] = {n: p for n, p in named if p.requires_grad}
        self._protection: WriteProtected | None = None
        """Of the trainable parameters, if runs may not change them."""
        self._state = State(self.shadow, self.parameters.values(), beyond=live)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(x.numel() for x in self.parameters.values())

    def run(self, function: Callable[[nn.Module], T]) -> T:
        """Call a function of the copy; every call gives the same.

        Generators, modes and flags of the process are as they were before, afterwards.
        """
        with ExitStack() as stack:
            stack.enter_context(frozen_rng(self._seed))
            if self._protection is not None:
                stack.enter_context(self._protection)
            stack.enter_context(differentiable_twice(self.dtype, cudnn=not self._recurrent))
            stack.enter_context(own_figures())
            stack.enter_context(self._state.rewound())
            return function(self.shadow)

    def settle(self, functions: Iterable[Callable[[nn.Module], object]]) -> None:
        """Let functions change trainable parameters in place, and no run after them.

        An exception of theirs is left to the run that needs the result.
        """
        before = [x.detach().clone() for x in self.parameters.values()]
        self._protection = protection = WriteProtected(self.parameters.values())
        for function in functions:
            try:
                self.run(function)
            except Exception:
                break
        pairs = zip(self.parameters.values(), before, strict=True)
        # What wrote what was there already would write something else at other weights.
        is_written = protection.tried or not all(torch.equal(x, y) for x, y in pairs)
        protection.allows = False
        self._protection = protection if is_written else None

    def cast(self, batch: Any) -> Any:
        """Return a batch as the copy takes it: on its device, in its precision."""
        return cast_batch(batch, self.dtype, self.device)

    def has_initial_statistics(self) -> bool:
        """Whether a batch norm is in evaluation mode, but has not seen a batch yet."""
        return any(
            isinstance(part, _NormBase)
            and not part.training
            and part.num_batches_tracked is not None
            and int(part.num_batches_tracked) == 0
            for part in self.shadow.modules()
        )

    def release(self) -> None:
        """Free the copy's memory now."""
        release(self.shadow)


def set_mode(module: nn.Module, training: bool) -> None:
    """Set the mode of a copy; a Lightning module may say itself what evaluation mode means."""
    own = getattr(type(module), "on_validation_model_eval", None)
    if own is not None and not training and not own.__module__.startswith(_LIGHTNING):
        own(module)
    else:
        module.train(training)


def _measuring_device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
