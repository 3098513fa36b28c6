"""Functions of PyTorch whose second derivative is missing or wrong, exchanged for equal ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

from lightning_hessrank.network.modes import OrderedMode, Place


class TwiceDifferentiable(OrderedMode):
    """While active, computes the same values on ways that can be differentiated twice."""

    place: ClassVar[Place] = Place.EXCHANGE

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``, or what stands for it."""
        substitute = _SUBSTITUTES.get(func)
        if substitute is None or any(
            isinstance(mode, OrderedMode) and mode.replaces(func)
            for mode in _get_current_function_mode_stack()
        ):
            return func(*args, **kwargs)
        return substitute(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ‖v‖``; the fused kernel's second derivative by ``v`` is wrong (PyTorch 2.13, CPU)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(  # noqa: PLR0917 - the signature of F.embedding
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Same lookup, with the gradient of the lookup: dense, and not scaled by frequencies.

    Sparse gradients cannot be differentiated again; scaled ones are the gradient of no function.
    """
    return F.embedding(input, weight, padding_idx, max_norm, norm_type)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """By its definition; the kernel has no second derivative."""
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Products of groups (a mixture of experts) one by one; the kernel knows no float64.

    Where an operand has two dimensions, groups are pieces of it that end at ``offs``.
    """
    if offs is None:
        result = torch.bmm(mat_a, mat_b)
    else:
        ends: list[int] = offs.tolist()
        groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if mat_a.ndim == mat_b.ndim:
            result = torch.stack([mat_a[:, group] @ mat_b[group] for group in groups])
        elif mat_a.ndim == 2:
            rows = [mat_a[group] @ b for group, b in zip(groups, mat_b, strict=True)]
            rest = mat_a.new_zeros(len(mat_a) - ends[-1], mat_b.shape[2])
            result = torch.cat([*rows, rest])
        else:
            columns = [a @ mat_b[:, group] for a, group in zip(mat_a, groups, strict=True)]
            rest = mat_b.new_zeros(mat_a.shape[1], mat_b.shape[1] - ends[-1])
            result = torch.cat([*columns, rest], dim=1)
    result = result if bias is None else result + bias
    return result if out_dtype is None else result.to(out_dtype)


_SUBSTITUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.hardsigmoid: _hardsigmoid,
}
for _home in (torch, F):  # where this version of PyTorch has it
    for _name in ("_grouped_mm", "grouped_mm"):
        if hasattr(_home, _name):
            _SUBSTITUTES[getattr(_home, _name)] = _grouped_mm
