"""A network's linear surrogate with everything that its bounds have in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import InputSpan, flatten
from lightning_hessrank.bounds.surrogate import Surrogate
from lightning_hessrank.bounds.trace import Trace, Weights
from lightning_hessrank.network.function import Network, layer_name, layers_of
from lightning_hessrank.network.losses import LossKind
from lightning_hessrank.results import BoundNotAvailableError


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
        BoundNotAvailableError: there is no multilinear surrogate, or it mixes samples.
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
    surrogate = Surrogate(network.forward, network.parameters)
    weights = Weights(network.parameters, generator)
    probes = tuple(
        torch.randn(2, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
        for x in network.inputs
    )
    trace = surrogate.run(probes, weights)
    used = torch.autograd.grad(
        [f.sum() for f in trace.outputs], trace.inputs, allow_unused=True, retain_graph=True
    )
    _check_parameters(network, trace)
    relevant = [i for i, grad in enumerate(used) if grad is not None]
    constant = _check_samples(surrogate, weights, probes, trace)
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
    return LinearModel(
        network,
        loss,
        _restricted(surrogate, network.inputs, relevant),
        span,
        trace,
        sum(loss.effective_outputs(f, 2) for f in trace.outputs),
        constant,
        generator,
    )


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


def _check_samples(
    surrogate: Surrogate, weights: Weights, probes: Sequence[Tensor], trace: Trace
) -> bool:
    """Check that no output depends on two samples; return whether the output has a constant."""
    with torch.no_grad():
        zero = surrogate.run([torch.zeros_like(x) for x in probes], weights).outputs
        scale = max(float(f.detach().abs().max()) for f in trace.outputs) or 1.0
        seen = [torch.zeros_like(f) for f in zero]
        for i in range(len(probes[0])):
            single = []
            for x in probes:
                only = torch.zeros_like(x)
                only[i] = x[i].detach()
                single.append(only)
            outputs = surrogate.run(single, weights).outputs
            changed = [(f - f0).abs() > 1e-10 * scale for f, f0 in zip(outputs, zero, strict=True)]
            seen = [count + change for count, change in zip(seen, changed, strict=True)]
        if any(bool((count > 1).any()) for count in seen):
            raise BoundNotAvailableError(
                "the network's output for one sample depends on other samples of the batch, so "
                "that there is no bound from its architecture alone"
            )
        return any(float(f.abs().max()) > 1e-12 * scale for f in zero)
