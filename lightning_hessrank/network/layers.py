"""A layer is a linear map ``z = T(W) a + b``, and this is how one is read from a call of PyTorch.

``T(W)`` is linear in the weights; for a convolution it is block Toeplitz (Singh, Hofmann,
Schölkopf, arXiv 2305.09088, section 3). All that this package knows of layers are views of it:

* ``T(W)`` itself, as an operator or a dense matrix: :meth:`Layer.toeplitz`;
* *patches* ``P``, the unfolded input: what the slices of the weight multiply, ``z = W P``;
* *adjoint patches*, the unfolded cotangents ``g`` of the output: a change ``V`` of the weight takes
  ``T(V)ᵀ g`` to the layers before.

Ranks of patches and adjoint patches bound that of the Hessian; signals times patches are the
gradients of single samples, from which its outer-product factor and its blocks are made.

Two designs were weighed. (a) A class for every type of layer, with a method for every view: fast
where each is written by hand, but a new type is six methods, which can contradict each other.
(b) One class, and for every type one function that says which argument is the input and which the
weight, and how weight and channels are laid out; all views follow from applying the operation to
unit weights. (b) is used; a :class:`Geometry`, where a type has one, gives the same by indexing.
A type from elsewhere is one function more (see :func:`reads`)::

    @reads("einsum")
    def positionwise(call: LayerCall) -> Layer | None:
        equation, a, weight = call.args
        if equation != "nct,mc->nmt":
            return None
        m, c = weight.shape
        apply = lambda a, w: call.func(equation, a, w)
        return Layer(a, weight, None, apply, Slices(1, m, c, 1), **channels(a, -2))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.network.modes import name_of
from lightning_hessrank.network.operator import ToeplitzOperator
from lightning_hessrank.network.unfold import (
    Geometry,
    convolution_geometry,
    fold,
    is_plain,
    unfold,
)

Arrange = Callable[[Tensor], Tensor]


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
class Layer:
    """A call that is linear in an activation and linear in a weight.

    In group ``g``, ``z[n, g, m, s] = Σ_c W[g, m, c] · patches[n, g, c, s]`` with output channels
    ``m``, positions ``s`` and, for ``c``, every pair of an input channel and a tap. A linear layer
    has one tap, and for positions whatever dimensions lie between the samples and the features.
    """

    input: Tensor
    """``a``, as in the graph."""
    weight: Tensor
    bias: Tensor | None
    """One number for every output channel, in their order."""
    apply: Callable[[Tensor, Tensor], Tensor]
    """The operation without its bias, as a function of input and weight."""
    slices: Slices
    to_slices: Arrange = lambda w: w[None, :, :, None]
    """Brings a weight (or its gradient) into shape ``(groups, m, c, k)``."""
    from_slices: Arrange = lambda w: w[0, :, :, 0]
    """The inverse, for any ``m`` and ``c``: a weight for other numbers of channels."""
    channels_first: Arrange = lambda x: x.movedim(-1, 1)
    """Brings an input or output into ``(N, channels, *places)``, channels group by group."""
    channels_back: Arrange = lambda x: x.movedim(1, -1)
    """The inverse, for any number of channels."""
    has_samples: bool = True
    """Whether the first dimension of input and output holds the samples ``N``; else ``N`` is 1."""
    geometry: Geometry | None = None
    """Where the taps read, if that is known."""

    @property
    def in_channels(self) -> int:
        """Of the input, all groups together."""
        return self.slices.groups * self.slices.columns

    @cached_property
    def order(self) -> Tensor:
        """Place among the slices, flattened, of every number of the flattened weight."""
        return self.from_slices(torch.arange(self.weight.numel()).reshape(self.slices)).flatten()

    @property
    def is_row_major(self) -> bool:
        """Whether the weight has its numbers in the order of its slices."""
        return torch.equal(self.order, torch.arange(self.weight.numel()))

    def places(self) -> Tensor:
        """Where among the places of its input each tap finds its number: ``(taps, positions)``."""
        assert self.geometry is not None
        return self.geometry.places.to(self.input.device)

    def add_bias(self, z: Tensor, bias: Tensor) -> Tensor:
        """Add a bias to every position of an output."""
        channels = self.channels_first(z)
        return self.channels_back(channels + bias.reshape(-1, *(1,) * (channels.ndim - 2)))

    def images(self, x: Tensor) -> Tensor:
        """Bring something of the input's or output's shape into ``(N, channels, places)``."""
        x = self.channels_first(x)
        return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)

    def signals(self, cotangents: Tensor) -> Tensor:
        """Bring ``(k, N, …)`` of the output's shape into ``(k, N, groups, m, positions)``."""
        return self.by_group(cotangents.flatten(0, 1)).unflatten(0, cotangents.shape[:2])

    def patches(self, a: Tensor | None = None) -> Tensor:
        """Unfolded inputs: what one output channel can see, and its weights multiply.

        Args:
            a: of the input's shape, but for the number of samples; ``None``: the input, detached.

        Returns:
            Shape ``(N, groups, c * k, positions)``.
        """
        a = self.input.detach() if a is None else a
        groups, _, c, k = self.slices
        if self.geometry is not None:
            columns = unfold(self.images(a), self.places(), dim=2)
            return columns.flatten(1, 2).unflatten(1, (groups, -1))
        eye = torch.eye(c * k, dtype=a.dtype, device=a.device).reshape(1, c * k, c, k)
        with torch.no_grad():
            return self.by_group(self.apply(a, self.from_slices(eye.expand(groups, -1, -1, -1))))

    def adjoint_patches(self, g: Tensor) -> Tensor:
        """Unfolded cotangents of the output: correlated with a unit impulse at places of the input.

        Args:
            g: of the output's shape, but for the number of samples.

        Returns:
            Shape ``(N, groups, m * k, places)``.
        """
        groups, m, _, k = self.slices
        if self.geometry is not None:
            places = torch.Size(self.geometry.size).numel()
            return fold(self.by_group(g), self.places(), places).flatten(2, 3)
        eye = torch.eye(m * k, dtype=g.dtype, device=g.device).reshape(1, m * k, m, k)
        weight = self.from_slices(eye.transpose(1, 2).expand(groups, -1, -1, -1))
        samples, like = len(self.channels_first(g)), self.channels_first(self.input)
        zero = g.new_zeros(samples, groups * m * k, *like.shape[2:])
        a = self.channels_back(zero).requires_grad_()
        with torch.enable_grad():
            z = self.apply(a, weight)
        return self.by_group(torch.autograd.grad(z, a, g)[0])

    def toeplitz(self, weight: Tensor | None = None) -> ToeplitzOperator:
        """``T(W)`` for one sample, as an operator; ``weight``: another in the place of ``W``."""
        weight = self.weight.detach() if weight is None else weight
        shape = self.input.shape[self.has_samples :]
        with torch.no_grad():
            output = self.apply(weight.new_zeros(1, *shape), weight)
        return ToeplitzOperator(
            lambda a: self.apply(a, weight), shape, output.shape[1:], weight.dtype, weight.device
        )

    def by_group(self, x: Tensor) -> Tensor:
        """Bring something of the output's shape into ``(N, groups, m, positions)``."""
        return self.images(x).unflatten(1, (self.slices.groups, -1))


class LayerCall(NamedTuple):
    """A call of a function, for a reader to look at."""

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_weight: Callable[[object], bool]
    """Tells tensors that are made of parameters only, where an operation does not."""

    def bind(self, *names: str) -> dict[str, Any]:
        """Arguments by name."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs


Reader = Callable[[LayerCall], Layer | None]
_READERS: dict[str, Reader] = {}


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Let a function read the calls of some operations.

    It returns a :class:`Layer`, or ``None`` where the call is none; it may take an argument for the
    weight that is no parameter, which its callers look at.

    Args:
        names: of functions of PyTorch, as :func:`~lightning_hessrank.network.modes.name_of` gives
            them. A later reader replaces an earlier one.
    """

    def register(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(names, reader))
        return reader

    return register


def has_reader(name: str) -> bool:
    """Whether calls of this name may be layers."""
    return name in _READERS


def read_layer(
    func: Callable[..., Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_weight: Callable[[object], bool] = lambda _: False,
) -> Layer | None:
    """Read a call, or return ``None`` where it is not that of a layer."""
    reader = _READERS.get(name_of(func))
    return None if reader is None else reader(LayerCall(func, args, kwargs, is_weight))


def channels(a: Tensor, dim: int) -> dict[str, Any]:
    """Arguments of :class:`Layer` where channels are in dimension ``dim < 0`` of input and output.

    Before them come the samples, or nothing.
    """
    there, back = (lambda x: x.movedim(dim, 1)), (lambda x: x.movedim(1, dim))
    if a.ndim == -dim:
        there, back = (lambda x: x[None]), (lambda x: x[0])
    elif a.ndim == 1 - dim:
        there = back = lambda x: x
    return {"channels_first": there, "channels_back": back, "has_samples": a.ndim != -dim}


@reads("linear")
def _linear(call: LayerCall) -> Layer | None:
    given = call.bind("input", "weight", "bias")
    if given["weight"].ndim != 2:
        return None
    layer = _pointwise(given["input"], given["weight"], call.func, -1)
    return replace(layer, bias=given.get("bias"))


@reads("matmul", "mm", "rmatmul")
def _matmul(call: LayerCall) -> Layer | None:
    if len(call.args) != 2 or call.kwargs:
        return None
    left, right = call.args[::-1] if name_of(call.func) == "rmatmul" else call.args
    if call.is_weight(right) and right.ndim == 2:
        flipped = _pointwise(left, right.T, torch.matmul, -1)
        to, back = (lambda w: w.T[None, :, :, None]), (lambda w: w[0, :, :, 0].T)
        return replace(flipped, weight=right, to_slices=to, from_slices=back)
    if call.is_weight(left) and left.ndim == 2 and right.ndim >= 2:
        return _pointwise(right, left, lambda a, w: w @ a, -2)
    return None


def _pointwise(
    a: Tensor, weight: Tensor, apply: Callable[[Tensor, Tensor], Tensor], dim: int
) -> Layer:
    """A weight of shape ``(m, c)`` that acts along one dimension of the input."""
    m, c = weight.shape
    layer = Layer(a, weight, None, apply, Slices(1, m, c, 1), **channels(a, dim))
    if not (layer.has_samples and is_plain(a) and is_plain(weight)):
        return layer
    return replace(layer, geometry=Geometry.pointwise(a.shape[1:].numel() // max(c, 1)))


@reads("addmm")
def _addmm(call: LayerCall) -> Layer | None:
    if len(call.args) != 3:
        return None
    bias, left, right = call.args
    layer = _matmul(LayerCall(torch.matmul, (left, right), call.kwargs, call.is_weight))
    if layer is None:
        return None
    along = (layer.slices.rows, 1) if layer.weight is left else (layer.slices.rows,)
    is_bias = bias.numel() == layer.slices.rows and bias.shape[-len(along) :] == along
    return replace(layer, bias=bias) if is_bias else None


@reads(*(f"conv{transpose}{n}d" for n in (1, 2, 3) for transpose in ("", "_transpose")))
def _convolution(call: LayerCall) -> Layer | None:
    transposed = "transpose" in name_of(call.func)
    options = ("padding", "output_padding", "groups", "dilation")
    names = options if transposed else ("padding", "dilation", "groups")
    given = call.bind("input", "weight", "bias", "stride", *names)
    a, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    groups, kernel = given.get("groups", 1), weight.shape[2:]
    shape = (groups, len(weight) // groups, weight.shape[1], kernel.numel())
    c, m = shape[1:3] if transposed else shape[2:0:-1]

    def to_slices(w: Tensor) -> Tensor:
        return w.reshape(shape).transpose(1, 2) if transposed else w.reshape(shape)

    def from_slices(w: Tensor) -> Tensor:
        w = w.transpose(1, 2) if transposed else w
        return w.reshape(groups * w.shape[1], w.shape[2], *kernel)

    return Layer(
        a,
        weight,
        bias,
        lambda a, w: call.func(a, w, **given),
        Slices(groups, m, c, kernel.numel()),
        to_slices,
        from_slices,
        **channels(a, 1 - weight.ndim),
        geometry=None if transposed else convolution_geometry(a, weight, **given),
    )
