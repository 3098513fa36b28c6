"""Functions of PyTorch whose second derivative is missing or wrong, exchanged for equal ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class TwiceDifferentiable(TorchFunctionMode):
    """While active, computes the same values on ways that can be differentiated twice."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or what stands for it."""
        substitute = _SUBSTITUTES.get(func, func)
        return substitute(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ‖v‖``; the fused kernel's second derivative by ``v`` is wrong (PyTorch 2.13, CPU)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(*args: Any, **kwargs: Any) -> Tensor:
    """Same lookup, with a dense gradient: sparse ones cannot be differentiated again."""
    if "sparse" in kwargs:
        return F.embedding(*args, **{**kwargs, "sparse": False})
    return F.embedding(*args[:6], **kwargs)  # the seventh is `sparse`


_SUBSTITUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
}
