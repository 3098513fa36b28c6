"""Every view of a layer is of the same map; a type from elsewhere is one function, used by all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import batch_bound, rank_bound
from lightning_hessrank.hessian import Evaluation, LossCurvature, LossFunction, LossTerm
from lightning_hessrank.hessian.dense import add_sampled
from lightning_hessrank.hessian.gram import outer_factor
from lightning_hessrank.hessian.samples import SampleHessian
from lightning_hessrank.network.layers import (
    Layer,
    LayerCall,
    Slices,
    channels,
    read_layer,
    reads,
)
from lightning_hessrank.network.recorder import LayerRecorder
from lightning_hessrank.network.unfold import Geometry
from tests.oracles import curvature_parts, exact_ranks

POSITIONWISE, GROUPED, LOCAL = "nct,mc->nmt", "ngc,gmc->ngm", "ncs,smc->nms"


@reads("einsum")
def einsum_layer(call: LayerCall) -> Layer | None:
    """Three layers that PyTorch has no module for."""
    if len(call.args) != 3 or not call.is_weight(call.args[2]):
        return None
    equation, a, weight = call.args

    def apply(a: Tensor, w: Tensor) -> Tensor:
        return call.func(equation, a, w)

    if equation == POSITIONWISE:
        m, c = weight.shape
        geometry = Geometry.pointwise(a.shape[2])
        return Layer(
            a, weight, None, apply, Slices(1, m, c, 1), **channels(a, -2), geometry=geometry
        )
    if equation == GROUPED:
        there, back = (lambda x: x.flatten(1)), (lambda x: x.unflatten(1, (len(weight), -1)))
    elif equation == LOCAL:
        there = lambda x: x.transpose(1, 2).flatten(1)  # noqa: E731
        back = lambda x: x.unflatten(1, (len(weight), -1)).transpose(1, 2)  # noqa: E731
    else:
        return None
    slices = Slices(*weight.shape, 1)
    to, out = (lambda w: w[..., None]), (lambda w: w[..., 0])
    return Layer(a, weight, None, apply, slices, to, out, there, back)


class Einsum(nn.Module):
    def __init__(self, equation: str, *shape: int) -> None:
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.randn(shape) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.weight)


# The function, and shapes of input and weight.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (5, 4), (3, 4)),
    "linear over a grid": (F.linear, (5, 2, 3, 4), (3, 4)),
    "linear without samples": (F.linear, (4,), (3, 4)),
    "matmul": (torch.matmul, (5, 4), (4, 3)),
    "matmul over a sequence": (torch.matmul, (5, 6, 4), (4, 3)),
    "matmul from the left": (lambda a, w: w @ a, (5, 4, 6), (3, 4)),
    "matmul from the left without samples": (lambda a, w: w @ a, (4, 6), (3, 4)),
    "addmm": (lambda a, w: torch.addmm(torch.zeros(3).double(), a, w), (5, 4), (4, 3)),
    "conv1d": (partial(F.conv1d, stride=2, padding=1), (5, 2, 7), (3, 2, 3)),
    "conv2d": (partial(F.conv2d, padding=(1, 0), dilation=2), (5, 2, 5, 6), (3, 2, 2, 3)),
    "conv2d groups": (partial(F.conv2d, groups=2, padding=2), (5, 4, 3, 4), (6, 2, 2, 3)),
    "conv2d one tap": (partial(F.conv2d, stride=2), (5, 4, 3, 4), (3, 4, 1, 1)),
    "conv2d unbatched": (F.conv2d, (2, 5, 4), (3, 2, 2, 2)),
    "conv3d": (partial(F.conv3d, padding="same"), (2, 2, 3, 2, 3), (3, 2, 3, 1, 3)),
    "conv_transpose1d": (partial(F.conv_transpose1d, stride=2, padding=1), (5, 3, 4), (3, 2, 3)),
    "conv_transpose2d": (partial(F.conv_transpose2d, groups=2), (2, 4, 3, 2), (4, 3, 2, 2)),
    POSITIONWISE: (partial(torch.einsum, POSITIONWISE), (5, 4, 6), (3, 4)),
    GROUPED: (partial(torch.einsum, GROUPED), (5, 2, 4), (2, 3, 4)),
    LOCAL: (partial(torch.einsum, LOCAL), (5, 4, 6), (6, 3, 4)),
}


def read(name: str) -> Layer:
    """The layer of a call, as the recorder would read it."""
    func, shape, kernel = CALLS[name]
    a, w = torch.randn(shape).double(), torch.randn(kernel).double()
    with LayerRecorder({"w": w}) as recorder:
        func(a, w)
    (use,) = recorder.uses
    assert use.is_linear
    assert recorder.elsewhere == set()
    assert use.layer.weight is w
    assert use.layer.input is a
    return use.layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CALLS)
def test_patches_and_adjoint_patches_are_those_of_the_operation(name: str) -> None:
    layer = read(name)
    groups, m, c, k = layer.slices
    a, v = torch.randn_like(layer.input), torch.randn_like(layer.weight)
    z = layer.apply(a, v)
    g = torch.randn_like(z)
    expected = (z * g).sum()
    slices = layer.to_slices(v)
    torch.testing.assert_close(layer.from_slices(slices), v, rtol=0, atol=0)
    torch.testing.assert_close(slices.flatten()[layer.order], v.flatten(), rtol=0, atol=0)
    z_images = layer.images(g).unflatten(1, (groups, m))
    found = torch.einsum("gmc,ngcs,ngms->", slices.flatten(2), layer.patches(a), z_images)
    torch.testing.assert_close(found, expected)
    adjoint = layer.adjoint_patches(g).unflatten(2, (m, k))
    a_images = layer.images(a).unflatten(1, (groups, c))
    found = torch.einsum("gmck,ngmkq,ngcq->", slices, adjoint, a_images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in CALLS if read(name).geometry is not None])
def test_a_geometry_gives_what_unit_weights_give(name: str) -> None:
    layer = read(name)
    general = replace(layer, geometry=None)
    g = torch.randn_like(layer.apply(layer.input, layer.weight))
    torch.testing.assert_close(layer.patches(), general.patches())
    torch.testing.assert_close(layer.adjoint_patches(g), general.adjoint_patches(g))


@pytest.mark.parametrize("name", CALLS)
def test_a_layer_is_its_toeplitz_matrix(name: str) -> None:
    layer = read(name)
    T, z = layer.toeplitz(), layer.apply(layer.input, layer.weight)
    if not layer.has_samples:
        layer, z = replace(layer, input=layer.input[None], has_samples=True), z[None]
    dense = T.to_dense()
    assert dense.shape == T.shape == (z[0].numel(), layer.input[0].numel())
    torch.testing.assert_close(dense @ layer.input.flatten(1).T, z.flatten(1).T)
    g = torch.randn(T.shape[0]).double()
    torch.testing.assert_close(T.transposed_matmul(g), dense.T @ g)


@pytest.mark.parametrize(
    ("left", "bias", "is_layer"),
    [
        (False, (3,), True),
        (False, (1, 3), True),
        (False, (5, 3), False),
        (False, (1,), False),
        (True, (3, 1), True),
        (True, (3,), False),
    ],
)
def test_what_addmm_adds_is_a_bias_only_along_the_channels(
    left: bool, bias: tuple[int, ...], is_layer: bool
) -> None:
    a, w = torch.randn(4, 3) if left else torch.randn(5, 4), torch.randn(4, 3)
    w = w.T if left else w
    factors = (w, a) if left else (a, w)
    b = torch.randn(bias)
    expected = torch.addmm(b, *factors)
    layer = read_layer(torch.addmm, (b, *factors), {}, lambda x: x is w or x is b)
    assert (layer is not None) == is_layer
    if layer is not None:
        torch.testing.assert_close(layer.add_bias(layer.apply(a, w), b), expected)


def networks() -> dict[str, nn.Module]:
    return {
        POSITIONWISE: nn.Sequential(
            nn.Unflatten(1, (3, 2)), Einsum(POSITIONWISE, 4, 3), nn.Flatten(), nn.Linear(8, 2)
        ),
        GROUPED: nn.Sequential(
            nn.Unflatten(1, (2, 3)), Einsum(GROUPED, 2, 4, 3), nn.Flatten(), nn.Linear(8, 2)
        ),
        LOCAL: nn.Sequential(
            nn.Unflatten(1, (2, 3)), Einsum(LOCAL, 3, 4, 2), nn.Flatten(), nn.Linear(12, 2)
        ),
    }


@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh])
@pytest.mark.parametrize("name", [POSITIONWISE, GROUPED, LOCAL])
def test_a_new_type_has_bounds(name: str, activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = networks()[name].double()
    net.insert(2, activation())
    x, y = torch.randn(1, 6).double(), torch.randn(1, 2).double()
    exact = exact_ranks(net, x)
    bound = batch_bound(net, F.mse_loss, (x, y))
    assert "counted in full" not in bound.reason
    assert exact["total"] <= bound.total < bound.num_parameters
    for kind in ("patch", "generic") if activation is nn.Identity else ():
        linear = rank_bound(net, x, data=x, kind=kind)
        assert linear.is_theorem
        assert all(exact[part] <= getattr(linear, part) for part in exact)
        if kind == "generic":
            assert exact == {part: getattr(linear, part) for part in exact}


@pytest.mark.parametrize("name", [POSITIONWISE, GROUPED, LOCAL])
def test_a_new_type_has_a_factor_and_derivatives_by_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampleHessian, "cost", 0)  # taken at any cost
    torch.manual_seed(0)
    net = networks()[name].double()
    net.insert(2, nn.Tanh())
    x, y = torch.randn(3, 6).double(), torch.randn(3, 2).double()

    def evaluate() -> Evaluation:
        output = net(x)
        return Evaluation(F.mse_loss(output, y), (output,))

    parameters = dict(net.named_parameters())
    curvature = LossCurvature(LossFunction(parameters, [LossTerm(1.0, evaluate)]))
    parts = curvature_parts(net, x, "mse", y)
    outer = parts["jacobian"].T @ parts["curvature"] @ parts["jacobian"]
    factor = outer_factor(curvature, tuple(range(len(parameters))))
    assert factor is not None
    torch.testing.assert_close(factor.T @ factor, outer)
    total = torch.zeros(curvature.num_parameters, curvature.num_parameters).double()
    starts = {0: 0, 1: curvature.sizes[0], 2: sum(curvature.sizes[:2])}
    covered = add_sampled(curvature, "total", starts, total, lambda _: None)
    assert covered == ({0, 1, 2} if name == POSITIONWISE else {1, 2})
    if name == POSITIONWISE:
        found = (total + total.T) / 2
        torch.testing.assert_close(found, parts["functional"] + outer)
