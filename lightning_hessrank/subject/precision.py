"""Keep a whole step in the measuring precision, whatever precision its code asks for.

Two designs were weighed: refusing steps that cast down (``.float()`` before a loss is common advice
for mixed precision, so many steps would be refused), and reading every floating type that the
step's code names as the measuring one. The latter changes no value, only rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_hessrank.network.batches import measuring_dtype
from lightning_hessrank.network.modes import OrderedMode, Place

_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double}
_COMPLEX_CASTS = {getattr(Tensor, name) for name in ("cfloat", "cdouble", "chalf")}
# Reads the same bits as another type: exchanging that type would change the value.
_BITS = {Tensor.view}


class PrecisionError(TypeError):
    """The step computes in a lower precision in a way that could not be undone."""


class KeepPrecision(OrderedMode):
    """While active, tensor functions compute in ``dtype`` where they would in another precision.

    Casts to, and new tensors of, other floating types come out in ``dtype``, those of complex types
    in the complex type of the same precision; tensors from outside (a constant in a closure) are
    cast on entry; autocast is off inside.
    """

    place: ClassVar[Place] = Place.PRECISION

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._complex = measuring_dtype(torch.complex64, dtype)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` with its types and arguments in the measuring precision.

        Raises:
            PrecisionError: it returns a lower precision all the same.
        """
        with torch._C.DisableTorchFunction():  # reading a dtype is no business of other modes
            if func in _CASTS or (func is Tensor.type and _names_float(args[1:], kwargs)):
                return args[0].to(self._dtype)
            if func in _COMPLEX_CASTS:
                return args[0].to(self._complex)
            name = getattr(func, "__name__", str(func))
            # In place: the tensor itself must be written to, not a cast of it.
            if func not in _BITS and not name.endswith("_"):
                args = tuple(map(self._adapt, args))
                kwargs = {k: self._adapt(v) for k, v in kwargs.items()}
        result = _without_autocast(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            if func in _BITS or not self._is_foreign(result):
                return result
            inputs = list(_tensors((*args, *kwargs.values())))
            if not inputs:  # made from data of the step's own: tensor, as_tensor
                return result.to(measuring_dtype(result.dtype, self._dtype))
            measured = [x.dtype for x in inputs if x.dtype in (self._dtype, self._complex)]
            if measured:
                raise PrecisionError(
                    f"{name} in the step turns {measured[0]} into {result.dtype}, and a rank "
                    "counted from that would be wrong; remove the cast, or pass loss_fn=... "
                    "(loss_fn(module, batch) -> scalar loss)"
                )
        return result

    def _adapt(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return measuring_dtype(value, self._dtype)
        if self._is_foreign(value):
            return value.to(measuring_dtype(value.dtype, self._dtype))
        if type(value) in (list, tuple):
            return type(value)(map(self._adapt, value))
        return value

    def _is_foreign(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype != measuring_dtype(
            value.dtype, self._dtype
        )


def _names_float(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``Tensor.type`` is asked for a floating type, as a dtype or by its old name."""
    wanted = args[0] if args else kwargs.get("dtype")
    if isinstance(wanted, torch.dtype):
        return wanted.is_floating_point
    return isinstance(wanted, str) and wanted.endswith(
        ("FloatTensor", "HalfTensor", "DoubleTensor", "BFloat16Tensor")
    )


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _tensors(value)


def _without_autocast(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run ``func``, with autocast off where the step has switched it on for itself."""
    if not torch.is_autocast_enabled() and not torch.is_autocast_enabled("cpu"):
        return func(*args, **kwargs)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return func(*args, **kwargs)
