"""The order of the function modes that stack while a step runs, and why it is this one.

A function mode sees every function of PyTorch that is called. The one entered last sees a call
first, and what it makes of it goes on to the one entered before. From the first to the last:

* ``PATIENCE``, ``Within``: only looks at the clock, so it is around all others.
* ``HOLD``, ``HeldValues``: last before PyTorch, since it holds the results of what is really
  computed.
* ``REWRITE``, ``CheaperDerivatives``: all others see the operations of the network itself, and no
  matrix products in the place of convolutions.
* ``READ``, ``LayerRecorder`` or ``SurrogateMode``: they read (the surrogate: exchange) what is
  really computed, when casts and substitutes are done. One at a time, since each hands on another
  tensor than the one that it remembers.
* ``PROTECT``, ``WriteProtected``: whatever is exchanged, nothing writes to what it protects.
* ``EXCHANGE``, ``TwiceDifferentiable``: what it puts in the place of a function is read, too.
* ``PRECISION``, ``KeepPrecision``: whatever is exchanged, read or rewritten is in the measuring
  precision.
* ``OUTPUT``, ``OutputRecorder``: sees the losses as the step calls them, before any of the above
  has taken them apart; its aliases of the outputs pass through all others. ``WithoutNoise``, too,
  exchanges what the step itself calls.

PyTorch's own ``DeviceContext`` is below all of them (``torch.set_default_device``), or above if the
step enters it; it only adds an argument to factories, which none of ours look at.

Two designs were weighed. (a) One mode with a list of handlers: nothing to order on entering, but
whoever wants one of them has to know them all. (b) Modes of their own, each entered where it is
needed, in an order that is checked. (b) keeps the step, the reading of layers and the rewriting
apart; the check costs a look at the stack for each run, and nothing for each call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

Mode = TypeVar("Mode", bound="OrderedMode")


class Place(IntEnum):
    """Places in the stack, in the order of entering: the last one sees a call first."""

    PATIENCE = 0
    HOLD = 1
    REWRITE = 2
    READ = 3
    PROTECT = 4
    EXCHANGE = 5
    PRECISION = 6
    OUTPUT = 7


class OrderedMode(TorchFunctionMode):
    """A function mode with a place in the order. Subclasses set ``place`` and define ``call``."""

    place: ClassVar[Place]

    def __enter__(self: Mode) -> Mode:
        """Enter.

        Raises:
            RuntimeError: below a mode that has to see calls after this one. (Under the last one the
                step runs, which may measure something itself: that begins a stack of its own.)
        """
        ours = [x for x in _get_current_function_mode_stack() if isinstance(x, OrderedMode)]
        if ours and self.place <= ours[-1].place < Place.OUTPUT:
            raise RuntimeError(
                f"{type(self).__name__} ({self.place.name}) cannot be entered inside "
                f"{type(ours[-1]).__name__} ({ours[-1].place.name}); enter one of each place, in "
                f"the order {', '.join(x.name for x in Place)}"
            )
        super().__enter__()
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Leave it to :meth:`call`."""
        return self.call(func, args, kwargs or {})

    def replaces(self, func: Callable[..., Any]) -> bool:
        """Whether it has something of its own for a function, that need not be exchanged before."""
        return False

    @abstractmethod
    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``func(*args, **kwargs)``, or what stands for it; this mode is off meanwhile."""


def name_of(func: Callable[..., Any]) -> str:
    """Name of a function without underscores around it: ``relu`` for ``relu_`` and ``Tensor.relu``.

    So the function, the method and what works in place have one name.
    """
    return getattr(func, "__name__", str(func)).strip("_")


#: Names that begin like ``__iadd__``, but change nothing.
_READING = frozenset({"__init__", "__index__", "__int__", "__invert__", "__iter__"})


def writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument (``mul_``, ``*=``, ``x[0] = …``)."""
    name = getattr(func, "__name__", "")
    if name == "__set__":
        return getattr(func, "__self__", None) is Tensor.data
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in _READING)
    return name.endswith("_") and name != "requires_grad_"
