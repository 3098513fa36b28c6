"""A network's linear surrogate with everything that its bounds have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import InputSpan, flatten
from lightning_hessrank.bounds.surrogate import Surrogate
from lightning_hessrank.bounds.trace import Trace, Weights
from lightning_hessrank.network.function import Network, layer_name, layers_of
from lightning_hessrank.network.losses import LossKind
from lightning_hessrank.network.patience import OutOfTimeError
from lightning_hessrank.results import BoundNotAvailableError
from lightning_hessrank.text import in_short


@dataclass(frozen=True, eq=False)
class LinearModel:
    """The surrogate, the inputs it may get, and what the loss sees of its outputs."""

    network: Network
    loss: LossKind
    surrogate: Surrogate
    span: InputSpan
    trace: Trace
    """Of a run on random inputs."""
    outputs: int
    """``K'``, per sample."""
    has_constant: bool
    """Whether the output at zero inputs is not zero: biases, shifts."""
    generator: torch.Generator

    is_whole: ClassVar[bool] = False
    """Whether the inputs are the data themselves, which cannot be drawn sample by sample."""

    @property
    def input_rank(self) -> int:
        """Rank of the inputs, with a constant appended where the network has one."""
        return self.span.affine_rank if self.has_constant else self.span.rank

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, used or not."""
        return sum(p.numel() for p in self.network.parameters.values())

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """Parameters of each layer, in the order of the network's parameters."""
        return layers_of(self.network.parameters)

    def layer_size(self, layer: str) -> int:
        """Number of parameters of a layer."""
        return sum(self.network.parameters[name].numel() for name in self.layers[layer])

    def product_cost(self) -> int:
        """Multiply-adds of one product with the functional Hessian, roughly."""
        forward = 0
        for use in self.trace.uses:
            positions = use.output.numel() // max(1, len(self.trace.inputs[0]))
            fan_in = 1 if use.layer is None else use.layer.slices.columns * use.layer.slices.taps
            # Touching an output costs about as much as a hundred multiply-adds in a product.
            forward += positions * (fan_in + 100)
        # Forward, backward and their derivatives.
        return 6 * max(1, self.residual_samples()) * forward + 1

    def weights(self) -> Weights:
        """Fresh random weights."""
        return Weights(self.network.parameters, self.generator)

    def residual_samples(self) -> int:
        """Samples that stand for all data in the functional Hessian: the largest rank of ``Ω``."""
        return min(self.input_rank, self.outputs)

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """Generic inputs."""
        return self.span.sample(count, self.generator, affine=self.has_constant)

    def cotangents(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Generic residuals of the loss at these outputs."""
        return tuple(
            self.loss.project(
                torch.randn(f.shape, generator=self.generator, dtype=torch.float64).to(f)
            )
            for f in outputs
        )


def linear_model(
    network: Network,
    loss: LossKind,
    *,
    data: Sequence[Tensor] | None = None,
    input_rank: int | None = None,
    seed: int = 0,
) -> LinearModel:
    """Trace the surrogate of a network and find what its bounds need.

    Raises:
        BoundNotAvailableError: there is no multilinear surrogate, or it mixes samples and the data
            are not one batch.
        ValueError: no trainable parameter, or inputs that cannot be used.
    """
    if not network.parameters:
        raise ValueError("the network has no trainable parameters, so there is no Hessian to bound")
    if not network.inputs or any(x.ndim == 0 or len(x) == 0 for x in network.inputs):
        raise BoundNotAvailableError(
            "the network has no floating-point inputs with a batch dimension; the linear bound is "
            "one for networks that are linear in their inputs (batch_bound has no such condition)"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(network.parameters, generator)
    network, probes, trace = _first_run(network, weights, generator)
    surrogate = Surrogate(network.forward, network.parameters)
    used = torch.autograd.grad(
        [f.sum() for f in trace.outputs], trace.inputs, allow_unused=True, retain_graph=True
    )
    _check_parameters(network, trace)
    relevant = [i for i, grad in enumerate(used) if grad is not None]
    constant, coupled = _constant_and_coupling(surrogate, weights, probes, trace)
    kind = LinearModel
    if coupled:
        kind, count = _WholeBatch, _check_whole(network, data)
        probes = tuple(x.detach() for x in network.inputs)
        trace = surrogate.run(probes, weights)
    else:
        count = len(probes[0])
    if trace.softmax_dim is not None and loss.takes_log_softmax:
        loss = replace(loss, class_dim=trace.softmax_dim)
        trace.replaced = trace.before_softmax
    if not trace.replaced and not _is_affine(network, loss, probes):
        trace.replaced = frozenset({"gates or other nonlinearities between its layers"})
    span = InputSpan(
        tuple(network.inputs[i].detach() for i in relevant),
        None if data is None else flatten([data[i].detach() for i in relevant]).to(probes[0]),
        input_rank,
    )
    return kind(
        network,
        loss,
        _restricted(surrogate, network.inputs, relevant),
        span,
        trace,
        sum(loss.effective_outputs(f, count) for f in trace.outputs),
        constant,
        generator,
    )


class _WholeBatch(LinearModel):
    """The surrogate on the very data given, for a network whose outputs mix samples.

    The inputs of a graph, or of a batch whose samples are compared with each other, are not
    samples of a span: they stay as they are, and only weights and residuals are generic.
    """

    is_whole = True

    @property
    def input_rank(self) -> int:
        """One "sample": the whole batch."""
        return 1

    def product_cost(self) -> int:
        """Multiply-adds of one product with the functional Hessian, roughly."""
        return super().product_cost() * len(self.span.like[0])

    def residual_samples(self) -> int:
        """One "sample": the whole batch."""
        return 1

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """The data."""
        return self.span.like


def _first_run(
    network: Network, weights: Weights, generator: torch.Generator
) -> tuple[Network, tuple[Tensor, ...], Trace]:
    """Run the surrogate on two random samples, or where these do not do, on as many as are given.

    A step may have the batch size, edges between samples or masks written into it. Such a network
    is then given any other number of samples by filling up.

    Returns:
        The network for any number of samples, random inputs, and the trace of the run on them.
    """

    def random(count: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(count, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
            for x in network.inputs
        )

    size = len(network.inputs[0])
    surrogate = Surrogate(network.forward, network.parameters)
    probes = random(2)
    try:
        return network, probes, surrogate.run(probes, weights)
    except (BoundNotAvailableError, OutOfTimeError):
        raise
    except Exception as error:  # of the user's code
        network.forward(network.inputs)  # what never runs shows its own error
        if size == 2 or any(len(x) != size for x in network.inputs):
            raise BoundNotAvailableError(_not_run(2, error)) from error
    probes = random(size)
    try:
        trace = surrogate.run(probes, weights)
    except (BoundNotAvailableError, OutOfTimeError):
        raise
    except Exception as error:
        raise BoundNotAvailableError(_not_run(size, error)) from error
    return replace(network, forward=_filled_up(network.forward, size)), probes, trace


def _not_run(samples: int, error: Exception) -> str:
    return (
        f"the network does not run on {samples} random samples, which its bound needs "
        f"({in_short(error)})"
    )


def _filled_up(
    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], size: int
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Make of a function of ``size`` samples one of any number, if samples do not mix."""

    def filled(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        if count == size:
            return forward(inputs)
        pieces = []
        for start in range(0, count, size):
            taken = min(size, count - start)
            rows = (start + torch.arange(size, device=inputs[0].device) % taken).tolist()
            outputs = forward(tuple(torch.stack([x[row] for row in rows]) for x in inputs))
            pieces.append([f[: len(f) * taken // size] for f in outputs])
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))

    return filled


def _check_whole(network: Network, data: Sequence[Tensor] | None) -> int:
    """Return the number of samples of a batch that is taken whole, if it is all the data."""
    size = len(network.inputs[0])
    if data is None or any(
        x.shape != y.shape or not torch.equal(x, y)
        for x, y in zip(data, network.inputs, strict=True)
    ):
        raise BoundNotAvailableError(
            "the network's output for one sample depends on other samples of the batch, so "
            "that there is no bound from its architecture alone"
        )
    return size


def _is_affine(network: Network, loss: LossKind, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the network itself, as it is, is affine in its inputs, as far as the loss can see.

    The trace replaces the nonlinearities that it knows; this notices the others, such as a product
    with a comparison.
    """

    def outputs(chosen: Sequence[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():  # of made-up numbers
            warnings.simplefilter("ignore")
            return [loss.project(f).detach() for f in network.forward(tuple(chosen))]

    others = tuple(x.roll(1, 0) - 0.5 * x for x in inputs)
    runs = [
        outputs(inputs),
        outputs(others),
        outputs([torch.zeros_like(x) for x in inputs]),
        outputs([x + y for x, y in zip(inputs, others, strict=True)]),
    ]
    return all(
        float((f + g - h - s).abs().max()) <= 1e-9 * max(float(t.abs().max()) for t in (f, g, h, s))
        for f, g, h, s in zip(*runs, strict=True)
    )


def _check_parameters(network: Network, trace: Trace) -> None:
    """Check that every use of a parameter was seen: none of their own values is in the outputs."""
    own = {name: p for name, p in network.parameters.items() if p.requires_grad}
    grads = torch.autograd.grad(
        [f.sum() for f in trace.outputs], list(own.values()), allow_unused=True, retain_graph=True
    )
    for name, grad in zip(own, grads, strict=True):
        if grad is not None:
            raise BoundNotAvailableError(
                f"layer '{layer_name(name)}': its parameter {name} is used where calls of PyTorch "
                "functions cannot be seen (a scripted or compiled module, a custom autograd "
                "function), so the network has no linear surrogate"
            )


def _restricted(
    surrogate: Surrogate, inputs: tuple[Tensor, ...], relevant: Sequence[int]
) -> Surrogate:
    """The surrogate as a function of the inputs that its outputs depend on."""
    if len(relevant) == len(inputs):
        return surrogate

    def forward(chosen: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        full = [x.new_zeros(len(chosen[0]), *x.shape[1:]) for x in inputs]
        for i, x in zip(relevant, chosen, strict=True):
            full[i] = x
        return surrogate.forward(tuple(full))

    return Surrogate(forward, surrogate.parameters)


def _constant_and_coupling(
    surrogate: Surrogate, weights: Weights, probes: Sequence[Tensor], trace: Trace
) -> tuple[bool, bool]:
    """Whether the output at zero inputs is not zero, and whether some output sees two samples.

    Two samples differ in some bit of their numbers. So an output sees two of them if, for some bit,
    it changes with those that have it and with those that have not.
    """
    size = len(probes[0])
    numbers = torch.arange(size, device=probes[0].device)
    with torch.no_grad():
        zeros = [torch.zeros_like(x) for x in probes]
        zero = [f.detach() for f in surrogate.run(zeros, weights).outputs]  # without its graph
        scale = max(float(f.detach().abs().max()) for f in trace.outputs) or 1.0

        def changed(kept: Tensor) -> list[Tensor]:
            inputs = [x.detach() * kept.reshape(-1, *(1,) * (x.ndim - 1)).to(x) for x in probes]
            outputs = surrogate.run(inputs, weights).outputs
            return [(f - f0).abs() > 1e-10 * scale for f, f0 in zip(outputs, zero, strict=True)]

        coupled = False
        for bit in range((size - 1).bit_length()):
            has = (numbers >> bit) % 2 == 1
            both = zip(changed(has), changed(~has), strict=True)
            coupled |= any(bool((one & other).any()) for one, other in both)
        constant = any(float(f.abs().max()) > 1e-12 * scale for f in zero)
    return constant, coupled
