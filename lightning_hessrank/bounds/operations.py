"""Which functions of PyTorch the linear surrogate keeps, replaces, or cannot have.

Functions are known by name without underscores around it, so that ``relu``, ``relu_``,
``Tensor.relu`` and ``torch.nn.functional.relu`` are one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Elementwise nonlinearities and their like: the identity in the surrogate.
ACTIVATIONS = _names("""
    abs arctan atan celu clamp clamp_max clamp_min clip elu erf exp expm1 feature_alpha_dropout
    gelu glu_gate hardshrink hardsigmoid hardswish hardtanh leaky_relu log1p logsigmoid
    log_sigmoid log_softmax mish prelu relu relu6 rrelu selu sigmoid silu sin cos softmax softmin
    softplus softshrink softsign sqrt square tanh tanhshrink threshold
""")
#: Random masks: the identity, exactly so in evaluation mode.
DROPOUT = _names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout")
#: Normalisation by the statistics of the sample itself: only the affine part remains.
NORMALISATIONS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
}
BATCH_NORM_ARGUMENTS = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)
#: Casts: the surrogate stays in its own precision.
CASTS = _names("float double half bfloat16 type_as")
#: Rearrangements that leave every sample's features in their order.
RESHAPES = _names("""
    view reshape flatten squeeze unsqueeze contiguous clone unflatten view_as requires_grad
""")
#: Linear in all their tensors jointly, so that no test is needed.
LINEAR = RESHAPES | _names("""
    add sub radd rsub iadd isub neg sum mean nansum cat concat concatenate stack hstack vstack
    chunk split tensor_split unbind getitem select narrow index_select permute transpose t
    swapaxes movedim moveaxis expand expand_as repeat roll flip pad avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold cumsum diff tril triu get
    lerp_linear retain_grad register_hook
""")
#: Polynomial in all their tensors: where random weights go in, generic ones come out.
POLYNOMIAL = CASTS | _names("""
    mul rmul imul matmul rmatmul mm bmm einsum kron outer addmm baddbmm dot tensordot to setitem
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
""")
#: Products of two activations, or gates: no multilinear surrogate.
PRODUCTS = {
    "scaled_dot_product_attention": "attention multiplies activations with each other",
    "multi_head_attention_forward": "attention multiplies activations with each other",
    "bilinear": "a bilinear layer multiplies two activations",
    "lstm": "an LSTM multiplies gates with states",
    "gru": "a GRU multiplies gates with states",
    "lstm_cell": "an LSTM multiplies gates with states",
    "gru_cell": "a GRU multiplies gates with states",
    "rnn_tanh": "a recurrent layer applies its weights repeatedly to their own result",
    "rnn_relu": "a recurrent layer applies its weights repeatedly to their own result",
    "glu": "a gated linear unit multiplies two activations",
}

_MAX_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_ADAPTIVE_POOLS: dict[str, Callable[..., Tensor]] = {
    "adaptive_max_pool1d": functional.adaptive_avg_pool1d,
    "adaptive_max_pool2d": functional.adaptive_avg_pool2d,
    "adaptive_max_pool3d": functional.adaptive_avg_pool3d,
}
MAX_POOLS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", *_ADAPTIVE_POOLS, "amax", "max"})


def is_in_place(func: Callable[..., Any]) -> bool:
    """Whether a function of PyTorch changes its first argument."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name in {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
    return name.endswith("_")


def average_instead_of_max(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Replace a maximum by the mean over the same elements; ``None`` where that has no meaning."""
    if name in _ADAPTIVE_POOLS:
        size = args[1] if len(args) > 1 else kwargs["output_size"]
        return _ADAPTIVE_POOLS[name](args[0] if args else kwargs["input"], size)
    if name in {"amax", "max"}:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        if dim is None or isinstance(dim, Tensor):
            return None
        keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        mean = args[0].mean(dim, keepdim=keepdim)
        if name == "amax":
            return mean
        indices = torch.zeros_like(mean, dtype=torch.int64)
        return torch.return_types.max((mean, indices))
    given = dict(zip(_MAX_POOL_ARGUMENTS, args, strict=False)) | kwargs
    return _mean_pool(int(name[-2]), given)


def _mean_pool(dimensions: int, given: dict[str, Any]) -> Tensor:
    """Average pooling of the geometry of a max pooling, as a depthwise convolution for dilation."""
    a = given["input"]

    def each(key: str, default: object) -> tuple[int, ...]:
        value = given.get(key, default)
        value = default if value is None or value == [] else value
        return (value,) * dimensions if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]

    kernel = each("kernel_size", 1)
    stride, padding, dilation = each("stride", kernel), each("padding", 0), each("dilation", 1)
    pad = [amount for p in reversed(padding) for amount in (p, p)]
    if given.get("ceil_mode", False):
        for i in range(dimensions):
            span = a.shape[i - dimensions] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
            # A window may start in the input or left padding only, as PyTorch rules.
            last = -(-span // stride[i]) * stride[i]
            last -= stride[i] * (last >= a.shape[i - dimensions] + padding[i])
            pad[2 * (dimensions - 1 - i) + 1] += max(0, last - span)
    channels = a.shape[-dimensions - 1]
    taps = torch.Size(kernel).numel()
    ones = a.new_full((channels, 1, *kernel), 1 / taps)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]
    return convolve(functional.pad(a, pad), ones, None, stride, 0, dilation, channels)
