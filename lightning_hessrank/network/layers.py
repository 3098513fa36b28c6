"""The linear operations of networks: which call applies which weight to which activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

LayerType = Literal["linear", "conv", "matmul", "opaque"]


class Slices(NamedTuple):
    """Shape in which a weight is seen: ``groups`` blocks of ``(m, c, k)``."""

    groups: int
    rows: int
    """``m``: output channels of a group."""
    columns: int
    """``c``: input channels of a group."""
    taps: int
    """``k``: positions that one weight slice covers; 1 for a linear layer."""


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A call that is linear in an activation and linear in a weight."""

    type: LayerType
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    apply: Callable[[Tensor, Tensor], Tensor]
    """The operation without its bias, as a function of input and weight."""
    apply_bias: Callable[[Tensor, Tensor], Tensor]
    """Adds a bias to an output."""
    slices: Slices
    to_slices: Callable[[Tensor], Tensor]
    """Brings a weight (or its gradient) into shape ``(groups, m, c, k)``."""
    from_slices: Callable[[Tensor], Tensor]
    """The inverse, for any ``m`` and ``c``: a weight for other numbers of channels."""

    input_dim: int = -1
    """Dimension of the input that holds its channels."""
    output_dim: int = -1
    """Dimension of the output that holds its channels."""

    def patches(self, a: Tensor) -> Tensor:
        """Unfolded inputs, shape ``(groups, c * k, places)``: what one output channel can see."""
        groups, _, c, k = self.slices
        eye = torch.eye(c * k, dtype=a.dtype, device=a.device)
        eye = eye.reshape(1, c * k, c, k).expand(groups, c * k, c, k)
        with torch.no_grad():
            z = self.apply(a, self.from_slices(eye))
        return _by_group(z, self.output_dim, groups)

    def adjoint_patches(self, g: Tensor) -> Tensor:
        """Unfolded cotangents ``g`` of the output, shape ``(groups, m * k, places)``.

        Each column correlates the signals with a unit impulse at one place of the input.
        """
        groups, m, _, k = self.slices
        eye = torch.eye(m * k, dtype=g.dtype, device=g.device).reshape(1, m * k, m, k)
        weight = self.from_slices(eye.transpose(1, 2).expand(groups, m, m * k, k))
        shape = [len(g), *self.input.shape[1:]] if g.ndim > 1 else list(self.input.shape)
        shape[self.input_dim] = groups * m * k
        a = torch.zeros(shape, dtype=g.dtype, device=g.device, requires_grad=True)
        with torch.enable_grad():
            z = self.apply(a, weight)
        (patches,) = torch.autograd.grad(z, a, g)
        return _by_group(patches, self.input_dim, groups)


def _by_group(x: Tensor, dim: int, groups: int) -> Tensor:
    """Channels by group and place: ``(groups, channels, places)``."""
    channels = x.movedim(dim, 0).flatten(1)
    return channels.reshape(groups, -1, channels.shape[1])


_CONV = {f"conv{n}d": n for n in (1, 2, 3)}
_CONV_TRANSPOSE = {f"conv_transpose{n}d": n for n in (1, 2, 3)}
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSE_ARGUMENTS = (
    *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
)
#: Names of functions that :func:`linear_call` understands.
LINEAR_CALLS = frozenset({"linear", "matmul", "rmatmul", "mm", "addmm", *_CONV, *_CONV_TRANSPOSE})


def linear_call(
    name: str,
    func: Callable[..., Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_weight: Callable[[object], bool],
) -> LinearCall | None:
    """Read a call, or return ``None`` where it does not apply a weight to an activation.

    Args:
        name: the function's name without underscores around it.
        func: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        is_weight: tells tensors that are made of parameters only.
    """
    if name == "linear":
        return _linear(func, bind(("input", "weight", "bias"), args, kwargs), is_weight)
    if name in _CONV:
        return _conv(func, bind(_CONV_ARGUMENTS, args, kwargs), is_weight)
    if name in _CONV_TRANSPOSE:
        return _conv_transpose(func, bind(_TRANSPOSE_ARGUMENTS, args, kwargs), is_weight)
    if name == "addmm" and len(args) == 3 and not kwargs:
        bias, left, right = args
        call = _matmul(left, right, is_weight)
        return None if call is None else _with_bias(call, bias)
    if name in {"matmul", "mm", "rmatmul"} and len(args) == 2 and not kwargs:
        left, right = args if name != "rmatmul" else (args[1], args[0])
        return _matmul(left, right, is_weight)
    return None


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _linear(
    func: Callable[..., Tensor], given: dict[str, Any], is_weight: Callable[[object], bool]
) -> LinearCall | None:
    weight = given["weight"]
    if not is_weight(weight) or is_weight(given["input"]) or weight.ndim != 2:
        return None
    return LinearCall(
        "linear",
        given["input"],
        weight,
        given.get("bias"),
        func,
        lambda z, b: z + b,
        Slices(1, weight.shape[0], weight.shape[1], 1),
        lambda w: w[None, :, :, None],
        lambda w: w[0, :, :, 0],
    )


def _matmul(left: Tensor, right: Tensor, is_weight: Callable[[object], bool]) -> LinearCall | None:
    if is_weight(right) and not is_weight(left) and right.ndim == 2:
        c, m = right.shape
        return LinearCall(
            "matmul",
            left,
            right,
            None,
            lambda a, w: a @ w,
            lambda z, b: z + b,
            Slices(1, m, c, 1),
            lambda w: w.T[None, :, :, None],
            lambda w: w[0, :, :, 0].T,
        )
    if is_weight(left) and not is_weight(right) and left.ndim == 2 and right.ndim >= 2:
        m, c = left.shape
        return LinearCall(
            "matmul",
            right,
            left,
            None,
            lambda a, w: w @ a,
            lambda z, b: z + b,
            Slices(1, m, c, 1),
            lambda w: w[None, :, :, None],
            lambda w: w[0, :, :, 0],
            -2,
            -2,
        )
    return None


def _with_bias(call: LinearCall, bias: Tensor) -> LinearCall:
    values = {k: getattr(call, k) for k in call.__dataclass_fields__}
    return LinearCall(**(values | {"bias": bias}))


def _conv(
    func: Callable[..., Tensor], given: dict[str, Any], is_weight: Callable[[object], bool]
) -> LinearCall | None:
    groups, weight = given.get("groups", 1), given["weight"]
    m, c, k = weight.shape[0] // groups, weight.shape[1], weight.shape[2:].numel()
    return _convolution(
        func,
        given,
        is_weight,
        Slices(groups, m, c, k),
        split=lambda w: w.reshape(groups, m, c, k),
        join=lambda w: w.reshape(groups * w.shape[1], w.shape[2], *weight.shape[2:]),
    )


def _conv_transpose(
    func: Callable[..., Tensor], given: dict[str, Any], is_weight: Callable[[object], bool]
) -> LinearCall | None:
    groups, weight = given.get("groups", 1), given["weight"]
    m, c, k = weight.shape[1], weight.shape[0] // groups, weight.shape[2:].numel()
    return _convolution(
        func,
        given,
        is_weight,
        Slices(groups, m, c, k),
        split=lambda w: w.reshape(groups, c, m, k).transpose(1, 2),
        join=lambda w: w.transpose(1, 2).reshape(
            groups * w.shape[2], w.shape[1], *weight.shape[2:]
        ),
    )


def _convolution(
    func: Callable[..., Tensor],
    given: dict[str, Any],
    is_weight: Callable[[object], bool],
    slices: Slices,
    *,
    split: Callable[[Tensor], Tensor],
    join: Callable[[Tensor], Tensor],
) -> LinearCall | None:
    """What a convolution has in common with its transpose, whose weight is laid out otherwise."""
    a, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    if not is_weight(weight) or is_weight(a):
        return None
    return LinearCall(
        "conv",
        a,
        weight,
        bias,
        lambda a, w: func(a, w, **given),
        lambda z, b: z + b.reshape(-1, *(1,) * (weight.ndim - 2)),
        slices,
        split,
        join,
        1 - weight.ndim,
        1 - weight.ndim,
    )
