"""Rewritten functions: the same numbers to second derivatives, by other operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.hessian.rewrite import MAX_POSITIONS, CheaperDerivatives

SLOW = {"ConvolutionBackward0", "NativeBatchNormBackward0", "LogSoftmaxBackward0"}


class Call(NamedTuple):
    """What is called with some numbers, and whether by another expression."""

    build: Callable[[], Callable[..., Tensor]]
    shapes: tuple[tuple[int, ...], ...]
    rewritten: bool
    dtype: torch.dtype = torch.float64


def norm(kind: type[nn.Module], training: bool = False, **options: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = kind(3, **options).double().train(training)
        if module.running_mean is not None:
            module.running_mean.normal_(mean=2.0)
            module.running_var.uniform_(0.3, 3.0)
        if module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        return module

    return build


def by_hand(**options: bool | float) -> Callable[[], Callable[..., Tensor]]:
    """``F.batch_norm`` with affine numbers among the inputs."""

    def build() -> Callable[..., Tensor]:
        mean, var = torch.randn(3).double(), torch.rand(3).double() + 0.5
        names = ("weight", "bias")
        return lambda x, *affine: F.batch_norm(
            x, mean, var, **dict(zip(names, affine, strict=False)), **options
        )

    return build


def conv(function: Callable[..., Tensor], *args, **kwargs) -> Callable[[], Callable[..., Tensor]]:
    return lambda: lambda *tensors: function(*tensors, *args, **kwargs)


def shared_padding() -> Callable[..., Tensor]:
    return nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect").double()


def entropy(*labels: int, **options: object) -> Callable[[], Callable[..., Tensor]]:
    """``F.cross_entropy`` with these labels."""
    return lambda: lambda z: F.cross_entropy(z, torch.tensor(labels), **options)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
IMAGES, KERNEL, BIAS = (2, 2, 5, 4), (3, 2, 3, 2), (3,)
CALLS = {
    "log_softmax": Call(conv(F.log_softmax, 1), ((4, 3),), True),
    "log_softmax of one sample": Call(conv(F.log_softmax, 0), ((3,),), True),
    "log_softmax over positions": Call(conv(torch.log_softmax, dim=-1), ((2, 3, 4),), True),
    "Tensor.log_softmax": Call(lambda: lambda z: z.log_softmax(0), ((4, 3),), True),
    "LogSoftmax": Call(lambda: nn.LogSoftmax(1), ((4, 3),), True, torch.float32),
    "log_softmax in another dtype": Call(
        conv(F.log_softmax, 1, dtype=torch.float64), ((4, 3),), False
    ),
    "cross_entropy": Call(entropy(0, 2, 2, 1), ((4, 3),), True),
    "cross_entropy of one sample": Call(
        lambda: lambda z: F.cross_entropy(z, torch.tensor(2)), ((3,),), True
    ),
    "cross_entropy of positions": Call(
        lambda: lambda z: F.cross_entropy(z, torch.tensor([[0, 2], [1, 1]])), ((2, 3, 2),), True
    ),
    "cross_entropy of ignored labels": Call(entropy(0, -1, 2, ignore_index=-1), ((3, 3),), True),
    "weighted cross_entropy": Call(entropy(0, 1, 2, weight=WEIGHTS), ((3, 3),), True),
    "cross_entropy summed": Call(entropy(0, 1, reduction="sum"), ((2, 3),), True),
    "cross_entropy of each": Call(entropy(0, 1, reduction="none"), ((2, 3),), True),
    "cross_entropy smoothed": Call(entropy(0, 1, label_smoothing=0.1), ((2, 3),), False),
    "cross_entropy with probabilities": Call(
        lambda: lambda z: F.cross_entropy(z, WEIGHTS.expand(2, 3) / 3.5), ((2, 3),), False
    ),
    "BatchNorm1d": Call(norm(nn.BatchNorm1d), ((4, 3),), True),
    "BatchNorm1d of sequences": Call(norm(nn.BatchNorm1d), ((4, 3, 5),), True),
    "BatchNorm2d": Call(norm(nn.BatchNorm2d), ((2, 3, 4, 2),), True),
    "BatchNorm3d": Call(norm(nn.BatchNorm3d), ((2, 3, 2, 3, 2),), True),
    "BatchNorm without affine": Call(norm(nn.BatchNorm2d, affine=False), ((2, 3, 4, 2),), True),
    "BatchNorm in training": Call(norm(nn.BatchNorm2d, training=True), ((2, 3, 4, 2),), False),
    "BatchNorm without running statistics": Call(
        norm(nn.BatchNorm2d, track_running_stats=False), ((4, 3, 2, 2),), False
    ),
    "batch_norm": Call(by_hand(), ((4, 3, 2), (3,), (3,)), True),
    "batch_norm without bias": Call(by_hand(), ((4, 3, 2), (3,)), True),
    "batch_norm, large eps": Call(by_hand(eps=0.7), ((4, 3), (3,), (3,)), True),
    "batch_norm in training": Call(by_hand(training=True), ((4, 3, 2), (3,), (3,)), False),
    "conv1d": Call(conv(F.conv1d), ((2, 3, 7), (4, 3, 3), (4,)), True),
    "conv2d": Call(conv(F.conv2d), (IMAGES, KERNEL, BIAS), True),
    "conv2d without bias": Call(conv(F.conv2d), (IMAGES, KERNEL), True),
    "conv2d geometry": Call(
        conv(F.conv2d, (2, 1), padding=(1, 2), dilation=2), ((2, 2, 7, 6), KERNEL, BIAS), True
    ),
    "conv2d same": Call(conv(F.conv2d, padding="same"), (IMAGES, (3, 2, 3, 3), BIAS), True),
    "conv3d": Call(conv(F.conv3d), ((2, 2, 3, 4, 3), (3, 2, 2, 2, 2), (3,)), True),
    "Conv2d with reflections": Call(shared_padding, ((2, 2, 5, 4),), True),
    "as many positions": Call(conv(F.conv1d), ((1, 2, MAX_POSITIONS + 2), (2, 2, 3), (2,)), True),
    "one position more": Call(conv(F.conv1d), ((1, 2, MAX_POSITIONS + 3), (2, 2, 3), (2,)), False),
    "conv2d with groups": Call(conv(F.conv2d, None, groups=2), ((2, 4, 5, 4), (4, 2, 3, 2)), False),
    "conv2d float32": Call(conv(F.conv2d), (IMAGES, KERNEL, BIAS), False, torch.float32),
    "conv2d unbatched": Call(conv(F.conv2d), (IMAGES[1:], KERNEL, BIAS), False),
}


def nodes(output: Tensor) -> set[str]:
    """Names of all operations in the graph."""
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def derivatives(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Value, gradient and a product with the Hessian of a curved function of the output."""
    generator = torch.Generator().manual_seed(1)
    loss = (output.tanh() * torch.randn(output.shape, generator=generator).to(output)).sum()
    gradient = torch.autograd.grad(loss, inputs, create_graph=True)
    vectors = [torch.randn(x.shape, generator=generator).to(x) for x in inputs]
    dot = sum((g * v).sum() for g, v in zip(gradient, vectors, strict=True))
    return [output, *gradient, *torch.autograd.grad(dot, inputs)]


@pytest.mark.parametrize("name", CALLS)
def test_rewritten_where_it_should_be_and_the_same_to_second_derivatives(name: str) -> None:
    call = CALLS[name]
    function = call.build()
    tensors = [torch.randn(shape, dtype=call.dtype, requires_grad=True) for shape in call.shapes]
    inputs = tensors + (list(function.parameters()) if isinstance(function, nn.Module) else [])
    plain = function(*tensors)
    with CheaperDerivatives():
        output = function(*tensors)
    assert nodes(plain) & SLOW  # else the graph would not tell
    assert call.rewritten == (not nodes(output) & SLOW)
    assert output.shape == plain.shape
    assert output.dtype == plain.dtype
    rtol = 1e-5 if call.dtype == torch.float32 else 1e-13
    for found, expected in zip(
        derivatives(output, inputs), derivatives(plain, inputs), strict=True
    ):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=rtol * scale)


def test_other_devices_keep_their_kernels() -> None:
    x, w = (torch.randn(s, dtype=torch.float64, device="meta") for s in (IMAGES, KERNEL))
    w.requires_grad_()
    with CheaperDerivatives():
        assert nodes(F.conv2d(x, w)) & SLOW


def test_running_statistics_are_read_and_not_moved() -> None:
    module = norm(nn.BatchNorm1d)()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    with CheaperDerivatives():
        module(torch.randn(4, 3, dtype=torch.float64))
    assert all(x.equal(before[name]) for name, x in module.state_dict().items())
    module.train()
    with CheaperDerivatives():
        module(torch.randn(4, 3, dtype=torch.float64))
    assert not module.running_mean.equal(before["running_mean"])


def test_a_large_mean_costs_no_digits() -> None:
    module = nn.BatchNorm1d(3).eval()
    module.running_mean.fill_(1e4)
    module.running_var.fill_(1e-2)
    x = 1e4 + 0.1 * torch.randn(50, 3)
    exact = (x.double() - module.running_mean) / (module.running_var.double() + module.eps).sqrt()
    with CheaperDerivatives():
        error = (module(x) - exact).abs().max()
    assert error <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_errors_are_those_of_the_original() -> None:
    x, mean, var = torch.ones(4), torch.zeros(4), torch.ones(4)
    with pytest.raises(RuntimeError) as plain:
        F.batch_norm(x, mean, var)
    with CheaperDerivatives(), pytest.raises(RuntimeError) as rewritten:
        F.batch_norm(x, mean, var)
    assert str(rewritten.value) == str(plain.value)


class Viewed(nn.Module):
    """Looks at an output in a way that its memory layout must allow."""

    def __init__(self, inner: nn.Module, before, after) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


CHANNELS_LAST = {"memory_format": torch.channels_last}
LAYOUTS = {
    "transposed into batch norm": Viewed(
        nn.BatchNorm1d(3), lambda x: x.transpose(1, 2), lambda y: y.view(len(y), -1)
    ),
    "channels last into batch norm": Viewed(
        nn.BatchNorm2d(3),
        lambda x: x.view(4, 5, 2, 3).permute(0, 3, 1, 2),
        lambda y: y.permute(0, 2, 3, 1).view(len(y), -1),
    ),
    "channels last into a convolution": Viewed(
        nn.Conv2d(3, 2, 2),
        lambda x: x.view(4, 5, 2, 3).permute(0, 3, 1, 2),
        lambda y: y.permute(0, 2, 3, 1).view(len(y), -1),
    ),
    "a convolution with weights that have channels last": Viewed(
        nn.Conv2d(3, 2, 2).to(**CHANNELS_LAST),
        lambda x: x.view(4, 3, 5, 2),
        lambda y: y.permute(0, 2, 3, 1).view(len(y), -1),
    ),
    "a plain convolution": Viewed(
        nn.Conv2d(3, 2, 2), lambda x: x.view(4, 3, 5, 2), lambda y: y.view(len(y), -1)
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_have_the_memory_layout_that_steps_rely_on(name: str) -> None:
    net = LAYOUTS[name].double().eval()
    x = torch.randn(4, 10, 3, dtype=torch.float64)
    expected = net(x)
    with CheaperDerivatives():
        found = net(x)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), "running_mean should contain 2"),
        (
            lambda x: F.conv1d(x, torch.zeros(2, 2, 3), stride=2, padding="same"),
            "padding='same' is not supported for strided convolutions",
        ),
    ],
)
def test_pytorch_says_what_is_wrong_with_a_call(call, message: str) -> None:
    with CheaperDerivatives(), pytest.raises(RuntimeError, match=message):
        call(torch.zeros(4, 2, 6))


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_curvature_of_a_certain_softmax_keeps_its_digits(scale: float, classes: int) -> None:
    """Off its diagonal ``diag(p) - p pᵀ`` is ``-exp(log pᵢ + log pⱼ)``, and rows sum to zero."""
    torch.manual_seed(0)
    logits = scale * torch.randn(7, classes, dtype=torch.float64)
    targets = torch.arange(7) % classes

    def loss(z: Tensor) -> Tensor:
        with CheaperDerivatives():
            return F.cross_entropy(z, targets, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, logits)
    found = torch.stack([hessian[i, :, i] for i in range(7)])
    log = logits.log_softmax(1)
    pairs = -(log[:, :, None] + log[:, None]).exp()
    pairs = pairs * (1 - torch.eye(classes, dtype=torch.float64))
    expected = pairs - torch.diag_embed(pairs.sum(2))
    assert float(expected.abs().min()) < 1e-20 or scale < 40
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_masked_classes_and_infinite_logits_are_as_they_are() -> None:
    z = torch.tensor([[0.0, -torch.inf, 1.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3]).double()
    with CheaperDerivatives():
        found = F.log_softmax(z, 1)
    torch.testing.assert_close(found, F.log_softmax(z, 1), equal_nan=True)
