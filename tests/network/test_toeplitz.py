"""A layer and its Toeplitz matrix do the same, whatever the layer's options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_hessrank.network.toeplitz import (
    toeplitz_figure,
    toeplitz_matrix,
    toeplitz_operator,
    weight_pattern,
)

pytestmark = pytest.mark.usefixtures("double_precision")


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of any kind, with a size of input that it can take."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    kernel, dilation, stride = each(1, 3), each(1, 2), each(1, 3)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(r + draw(st.integers(0, 3)) for r in reach)
    bias = draw(st.booleans())
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
    if draw(st.booleans()):
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        padding = tuple(draw(st.integers(0, r - 1)) for r in reach)
        extra = tuple(
            draw(st.integers(0, max(a, b) - 1)) for a, b in zip(stride, dilation, strict=True)
        )
        layer = kind(*channels, kernel, padding=padding, output_padding=extra, **options)
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        mode = draw(st.sampled_from(["zeros", "circular"]))
        layer = kind(*channels, kernel, padding=each(0, 1), padding_mode=mode, **options)
    return layer.double(), size


@settings(max_examples=150, deadline=None)
@given(layers())
def test_the_matrix_gives_the_layers_output(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, size = case
    x = torch.randn(layer.in_channels, *size, dtype=torch.float64)
    try:
        expected = layer(x[None])[0]
    except RuntimeError:  # more padding cropped than there is output
        return
    assume(expected.numel() * x.numel() <= 10**7)  # larger ones are not written down
    T = toeplitz_matrix(layer, size)
    z = (T @ x.flatten()).reshape(expected.shape)
    if layer.bias is not None:
        z = z + layer.bias.reshape(-1, *(1,) * len(size))
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    operator = toeplitz_operator(layer, size)
    u, v = torch.randn(T.shape[0], 2).double(), torch.randn(T.shape[1], 2).double()
    torch.testing.assert_close(operator @ v, T @ v)
    torch.testing.assert_close(operator.transposed_matmul(u), T.T @ u)


def test_a_linear_layer_is_its_weight() -> None:
    layer = nn.Linear(5, 3)
    assert torch.equal(toeplitz_matrix(layer, 5), layer.weight)
    assert torch.equal(toeplitz_matrix(layer, ()), layer.weight)


def test_a_convolution_in_one_dimension_is_a_toeplitz_matrix() -> None:
    layer = nn.Conv1d(1, 1, 3, bias=False)
    layer.weight.data = torch.tensor([[[1.0, 2.0, 3.0]]])
    T = toeplitz_matrix(layer, 5)
    expected = [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]
    assert T.tolist() == expected
    assert weight_pattern(layer, 5).tolist() == expected


def test_the_figure_has_one_colour_for_each_weight() -> None:
    figure = toeplitz_figure(nn.Conv2d(2, 3, 3, padding=1), (4, 4))
    (image,) = figure.axes[0].images
    shown = image.get_array().compressed() if image.get_array().mask.any() else image.get_array()
    assert len(set(shown.flatten().tolist())) == 3 * 2 * 9
    assert image.get_array().shape == (48, 32)


@pytest.mark.parametrize(
    ("layer", "size", "error", "message"),
    [
        (
            nn.ReLU(),
            3,
            TypeError,
            "toeplitz_matrix takes a Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d layer, got ReLU",
        ),
        (
            nn.Conv2d(1, 1, 3),
            8,
            ValueError,
            "Conv2d needs an input_size of 2 positive numbers (the spatial size, without batch and "
            "channels), got (8,)",
        ),
        (
            nn.Linear(4, 2),
            3,
            ValueError,
            "a Linear layer with 4 input features has input_size 4 or (), got (3,)",
        ),
        (
            nn.Conv2d(3, 64, 3, padding=1),
            (64, 64),
            ValueError,
            "the matrix would have 262,144 × 12,288 entries; use toeplitz_operator, which "
            "multiplies with it without writing it down",
        ),
    ],
)
def test_errors_say_what_to_pass(
    layer: nn.Module, size: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        toeplitz_matrix(layer, size)
    assert str(caught.value) == message


def test_the_operator_form_of_a_layer_too_large_to_write_down() -> None:
    layer = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    operator = toeplitz_operator(layer, (64, 64))
    x = torch.randn(3, 64, 64)
    assert operator.shape == (262_144, 12_288)
    torch.testing.assert_close(operator @ x.flatten(), layer(x[None]).flatten())
