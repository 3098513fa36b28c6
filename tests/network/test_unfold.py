"""A convolution is a product of its weights with patches, whatever its geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_hessrank.network.layers import Layer, read_layer
from lightning_hessrank.network.unfold import unfold

# Shapes of input and weight, and further arguments by position or by name.
GEOMETRIES = {
    "1d": ((2, 3, 7), (4, 3, 3), (), {}),
    "1d bias": ((2, 3, 7), (4, 3, 3), (torch.arange(4.0, dtype=torch.float64),), {}),
    "1d stride": ((2, 3, 8), (4, 3, 3), (None, 2), {}),
    "1d padding": ((2, 3, 7), (4, 3, 3), (), {"padding": 2}),
    "1d all by position": ((2, 4, 9), (6, 2, 3), (None, (2,), (1,), (2,), 2), {}),
    "1d all by name": (
        (2, 4, 9),
        (6, 2, 3),
        (),
        {"bias": None, "stride": (2,), "padding": (1,), "dilation": (2,), "groups": 2},
    ),
    "1d same": ((2, 3, 7), (4, 3, 3), (), {"padding": "same"}),
    "1d same even": ((2, 3, 7), (4, 3, 4), (), {"padding": "same"}),
    "1d same even dilated": ((2, 3, 7), (4, 3, 2), (), {"padding": "same", "dilation": 3}),
    "1d valid": ((2, 3, 7), (4, 3, 2), (None, 3, "valid"), {}),
    "1d one tap": ((2, 3, 7), (4, 3, 1), (), {}),
    "1d one tap stride": ((2, 3, 7), (4, 3, 1), (None, 2), {}),
    "1d one tap padding": ((2, 3, 7), (4, 3, 1), (None, 1, 1), {}),
    "1d one position": ((2, 3, 4), (4, 3, 4), (), {}),
    "2d": ((2, 3, 5, 6), (4, 3, 3, 3), (), {}),
    "2d even kernel": ((2, 3, 5, 6), (4, 3, 2, 4), (), {}),
    "2d stride": ((2, 3, 6, 7), (4, 3, 3, 2), (), {"stride": (2, 3)}),
    "2d padding": ((2, 3, 5, 4), (4, 3, 3, 3), (), {"padding": (2, 1)}),
    "2d one number for both": ((2, 3, 5, 4), (4, 3, 3, 3), (None, (2,), (1,)), {}),
    "2d dilation": ((2, 3, 7, 6), (4, 3, 3, 2), (), {"dilation": (2, 3)}),
    "2d groups": ((2, 4, 5, 4), (6, 2, 2, 3), (), {"groups": 2, "padding": 1}),
    "2d depthwise": ((2, 3, 5, 4), (6, 1, 3, 3), (None, 2, 1, 1, 3), {}),
    "2d same": ((2, 3, 5, 4), (4, 3, 3, 5), (), {"padding": "same"}),
    "2d same even": ((2, 3, 5, 4), (4, 3, 2, 4), (), {"padding": "same"}),
    "2d same dilated": ((2, 3, 5, 4), (4, 3, 3, 2), (), {"padding": "same", "dilation": (2, 1)}),
    "2d everything": (
        (2, 4, 9, 8),
        (2, 2, 3, 2),
        (None,),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 3), "groups": 2},
    ),
    "2d empty batch": ((0, 3, 5, 4), (4, 3, 3, 3), (), {}),
    "3d": ((2, 2, 4, 3, 5), (3, 2, 2, 1, 3), (), {}),
    "3d stride, padding, dilation": (
        (2, 2, 4, 5, 6),
        (3, 2, 2, 3, 2),
        (None, (2, 1, 3), (0, 1, 2), (1, 2, 3)),
        {},
    ),
    "3d same": ((2, 2, 3, 2, 3), (3, 2, 2, 3, 1), (), {"padding": "same"}),
    "3d groups": ((2, 4, 3, 4, 3), (4, 2, 2, 2, 2), (), {"groups": 2}),
}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def from_patches(layer: Layer) -> Tensor:
    """The definition: ``W`` times patches, in every group of channels."""
    weight = layer.to_slices(layer.weight).flatten(2)
    output = torch.einsum("gmc,ngcs->ngms", weight, layer.patches()).flatten(1, 2)
    output = output.unflatten(2, layer.geometry.positions)
    return output if layer.bias is None else layer.add_bias(output, layer.bias)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_times_weights_are_the_convolution(name: str) -> None:
    shape, kernel, args, kwargs = GEOMETRIES[name]
    x = torch.randn(shape, dtype=torch.float64)
    args = (torch.randn(kernel, dtype=torch.float64), *args)
    expected = FUNCTIONS[len(kernel) - 2](x, *args, **kwargs)
    layer = read_layer(FUNCTIONS[len(kernel) - 2], (x, *args), kwargs)
    assert layer is not None
    assert layer.geometry.positions == expected.shape[2:]
    assert layer.places().shape == (math.prod(kernel[2:]), expected.shape[2:].numel())
    torch.testing.assert_close(from_patches(layer), expected, rtol=0, atol=1e-13)


def test_everything_by_name_is_read_as_by_position() -> None:
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 3, 2)
    layer = read_layer(F.conv2d, (), {"weight": w, "input": x, "stride": 2})
    assert layer is not None
    assert layer.input is x
    assert layer.weight is w
    geometry = layer.geometry
    assert (layer.bias, geometry.stride, layer.slices.groups) == (None, (2, 2), 1)
    assert (geometry.dilation, geometry.padding) == ((1, 1), ((0, 0), (0, 0)))


@pytest.mark.parametrize("dims", FUNCTIONS)
def test_a_single_unbatched_image_has_no_geometry(dims: int) -> None:
    x, w = torch.randn(3, *(4,) * dims), torch.randn(2, 3, *(3,) * dims)
    assert FUNCTIONS[dims](x, w).ndim == dims + 1  # PyTorch does accept it
    assert read_layer(FUNCTIONS[dims], (x, w), {}).geometry is None
    assert read_layer(FUNCTIONS[dims], (x.unsqueeze(0), w), {}).geometry is not None


def test_unfold_of_any_dimension() -> None:
    images, places = torch.arange(24.0).view(2, 4, 3), torch.tensor([[0, 4], [3, 1], [2, 2]])
    padded = torch.cat([images, torch.zeros(2, 1, 3)], dim=1)
    found = unfold(images, places, dim=1)
    assert found.shape == (2, 3, 2, 3)
    for tap, position in torch.cartesian_prod(torch.arange(3), torch.arange(2)):
        assert found[:, tap, position].equal(padded[:, places[tap, position]])


def test_one_tap_everywhere_copies_nothing() -> None:
    images = torch.randn(2, 3, 5)
    view = unfold(images, torch.arange(5)[None], dim=2)
    assert view.shape == (2, 3, 1, 5)
    assert view.data_ptr() == images.data_ptr()
    other = unfold(images, torch.tensor([[0, 2, 1, 3, 4]]), dim=2)
    assert other[:, :, 0].equal(images[:, :, [0, 2, 1, 3, 4]])
