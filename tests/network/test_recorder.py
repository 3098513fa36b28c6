"""Which calls of a network are remembered, and as what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.network.recorder import LayerRecorder, RecordedUse

LAYERS = {
    "linear": (nn.Linear(4, 3), (5, 4)),
    "linear over a sequence": (nn.Linear(4, 3, bias=False), (5, 6, 4)),
    "linear over a grid": (nn.Linear(4, 3), (5, 2, 3, 4)),
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (5, 2, 7)),
    "conv2d": (nn.Conv2d(2, 3, (2, 3), padding=(1, 0), bias=False), (5, 2, 4, 4)),
    "conv2d same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (5, 2, 4, 4)),
    "conv2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 2, 4, 4)),
    "conv2d groups": (nn.Conv2d(4, 6, 2, groups=2), (5, 4, 3, 4)),
    "conv3d depthwise": (nn.Conv3d(2, 4, 2, groups=2), (5, 2, 3, 2, 3)),
}


def record(module: nn.Module, x: Tensor) -> tuple[list[RecordedUse], Tensor]:
    """Uses of layers whose geometry is known."""
    with LayerRecorder(dict(module.named_parameters())) as recorder:
        output = module(x)
    return [use for use in recorder.uses if use.layer.geometry is not None], output


@pytest.mark.parametrize("name", LAYERS)
def test_signals_times_patches_are_the_gradients_of_every_sample(name: str) -> None:
    module, shape = LAYERS[name]
    module = module.double()
    (use,), output = record(module, torch.randn(shape, dtype=torch.float64))
    layer = use.layer
    cotangents = torch.randn(2, *output.shape, dtype=torch.float64)
    signals, patches = layer.signals(cotangents), layer.patches()
    gradients = torch.einsum("kngms,ngcs->kngmc", signals, patches).flatten(2, 3)
    for k, n in torch.cartesian_prod(torch.arange(2), torch.arange(5)):
        loss = (output[n] * cotangents[k, n]).sum()
        expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        torch.testing.assert_close(gradients[k, n], expected[0].flatten(1), rtol=0, atol=1e-13)
        if module.bias is not None:
            sums = signals[k, n].sum(-1).flatten()
            torch.testing.assert_close(sums, expected[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_knows_its_shapes(name: str) -> None:
    module, shape = LAYERS[name]
    module = module.double()
    (use,), output = record(module, torch.randn(shape, dtype=torch.float64))
    layer = use.layer
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    assert layer.slices.groups == getattr(module, "groups", 1)
    assert layer.in_channels == getattr(module, "in_channels", shape[-1])
    for x in (layer.input, use.output):
        assert layer.channels_back(layer.channels_first(x)).equal(x)
    assert layer.channels_first(output).shape[1] == len(module.weight)
    assert layer.images(use.output).shape[:2] == (5, len(module.weight))
    taps = module.weight[0, 0].numel() if module.weight.ndim > 2 else 1
    assert layer.places().shape == (taps, layer.images(use.output).shape[2])


def test_calls_are_remembered_in_order_and_survive_in_place_activations() -> None:
    first, second = nn.Conv1d(2, 3, 2), nn.Linear(5, 4)
    net = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
    x = torch.randn(3, 2, 6)
    uses, output = record(net, x)
    assert [use.layer.weight for use in uses] == [first.weight, second.weight]
    assert torch.equal(uses[0].output, first(x))
    assert bool((uses[0].output < 0).any())
    assert torch.equal(output, net(x))
    (signal,) = torch.autograd.grad(output.sum(), uses[0].output)
    assert bool((signal[uses[0].output < 0] == 0).all())
    assert bool(signal.any())


def test_what_has_no_samples_or_is_no_layer_is_not_remembered() -> None:
    net = nn.Linear(4, 3)
    x = torch.randn(4)
    assert record(net, x)[0] == []
    assert record(nn.Conv1d(4, 3, 1), x[:, None])[0] == []
    assert record(nn.ConvTranspose1d(4, 3, 1), x[None, :, None])[0] == []
    uses, output = record(nn.Tanh(), x)
    assert uses == []
    assert torch.equal(output, x.tanh())
