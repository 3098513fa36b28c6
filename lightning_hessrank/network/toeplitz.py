"""The Toeplitz representation of a layer: the matrix by which it acts on a flattened sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_hessrank.network.operator import ToeplitzOperator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Entries of a dense matrix beyond which the operator form is recommended (512 MiB in float64).
MAX_ENTRIES = 2**26


def toeplitz_operator(layer: nn.Module, input_size: int | Sequence[int]) -> ToeplitzOperator:
    """The Toeplitz matrix of a layer as an operator.

    Args:
        layer: ``Linear``, ``Conv1d/2d/3d`` or ``ConvTranspose1d/2d/3d``, with any stride, padding
            (every padding mode), dilation and groups.
        input_size: size of one sample without batch and channels, as ``(8, 8)``; a bare number for
            1-D. For a linear layer its number of input features, or ``()``.

    Raises:
        TypeError: the layer is of another kind.
        ValueError: the size does not fit the layer.
    """
    return _operator(layer, input_size, {})


def _operator(
    layer: nn.Module,
    input_size: int | Sequence[int],
    values: dict[str, Tensor],
) -> ToeplitzOperator:
    """The layer itself runs, with all its options, on other ``values`` and a bias of zero."""
    size = (input_size,) if isinstance(input_size, int) else tuple(input_size)
    shape = _input_shape(layer, size)
    weight = values.get("weight", layer.weight)
    assert isinstance(weight, Tensor)
    if isinstance(layer.bias, Tensor):
        values = values | {"bias": torch.zeros_like(layer.bias, dtype=weight.dtype)}

    def apply(x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, (x,))

    with torch.no_grad():
        output = apply(weight.new_zeros(1, *shape))
    return ToeplitzOperator(apply, torch.Size(shape), output.shape[1:], weight.dtype, weight.device)


def _input_shape(layer: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        if size not in {(), (layer.in_features,)}:
            raise ValueError(
                f"a Linear layer with {layer.in_features} input features has input_size "
                f"{layer.in_features} or (), got {size}"
            )
        return (layer.in_features,)
    if not isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        raise TypeError(
            "toeplitz_matrix takes a Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d layer, got "
            f"{type(layer).__name__}"
        )
    dimensions = len(layer.kernel_size)
    if len(size) != dimensions or any(s < 1 for s in size):
        raise ValueError(
            f"{type(layer).__name__} needs an input_size of {dimensions} positive numbers (the "
            f"spatial size, without batch and channels), got {size}"
        )
    return (layer.in_channels, *size)


def toeplitz_matrix(layer: nn.Module, input_size: int | Sequence[int]) -> Tensor:
    """The matrix ``T`` by which a layer acts: ``T @ x.flatten() + bias`` is its output, flattened.

    For a convolution it is made of one Toeplitz block per pair of output and input channel (doubly
    block Toeplitz in 2-D); stride keeps a subset of its rows, dilation spreads its diagonals,
    groups make it block diagonal, zero padding crops it (arXiv 2305.09088, section 3).

    Args:
        layer: see :func:`toeplitz_operator`.
        input_size: see :func:`toeplitz_operator`.

    Returns:
        Shape ``(out_features, in_features)``, features channel by channel, in the layer's dtype.

    Raises:
        TypeError: the layer is of another kind.
        ValueError: the size does not fit, or the matrix would not fit into memory.

    Example:
        >>> from lightning_hessrank import toeplitz_matrix
        >>> layer = nn.Conv1d(1, 1, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[[1.0, 2.0]]])
        >>> toeplitz_matrix(layer, 3)
        tensor([[1., 2., 0.],
                [0., 1., 2.]])
    """
    operator = toeplitz_operator(layer, input_size)
    rows, columns = operator.shape
    if rows * columns > MAX_ENTRIES:
        raise ValueError(
            f"the matrix would have {rows:,} × {columns:,} entries; use toeplitz_operator, which "
            "multiplies with it without writing it down"
        )
    with torch.no_grad():
        return operator.to_dense()


def toeplitz_figure(layer: nn.Module, input_size: int | Sequence[int]) -> Figure:
    """Draw the pattern of a layer's Toeplitz matrix: one colour per weight, zeros left blank.

    Equal colours are the same weight: the shared diagonals are what makes the matrix Toeplitz.
    """
    from matplotlib.figure import Figure

    pattern = weight_pattern(layer, input_size).to("cpu", torch.float64)
    shown = pattern.where(pattern > 0, torch.full_like(pattern, torch.nan))
    rows, columns = pattern.shape
    height = min(max(4.2 * rows / columns, 1.4), 8.0)
    figure = Figure(figsize=(4.2, height + 0.5), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shown.numpy(), cmap="viridis", interpolation="nearest")
    axes.set_title(f"{type(layer).__name__}: {rows} × {columns}", fontsize=9)
    axes.set_xlabel("input", fontsize=9)
    axes.set_ylabel("output", fontsize=9)
    axes.tick_params(labelsize=7)
    return figure


def weight_pattern(layer: nn.Module, input_size: int | Sequence[int]) -> Tensor:
    """Which weight stands where: 1 + its place in ``weight.flatten()``, and 0 where there is none.

    Where circular padding wraps two weights onto one input, their numbers add.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    numbers = torch.arange(1.0, weight.numel() + 1, dtype=torch.float64, device=weight.device)
    values = {"weight": numbers.reshape(weight.shape)}
    with torch.no_grad():
        return _operator(layer, input_size, values).to_dense().round()
