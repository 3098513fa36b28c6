"""Bounds of a PyTorch model, for callers without a Trainer."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_hessrank.bounds.batch import live_batch_bound
from lightning_hessrank.bounds.linear import LinearKind, linear_bound
from lightning_hessrank.network.function import Network
from lightning_hessrank.network.losses import loss_kind
from lightning_hessrank.results import RankBound


def rank_bound(
    model: nn.Module,
    example_input: Any,
    *,
    loss: object = "mse",
    data: Any = None,
    input_rank: int | None = None,
    kind: LinearKind = "auto",
) -> RankBound:
    """Bound the rank of the loss Hessian from the architecture of a network.

    It bounds the Hessian of the network's *linear surrogate* (activations and dropout removed,
    maxima averaged, batch norm per-channel affine) at any weights and, where no data are given, any
    data. For a linear network that is a theorem; otherwise a reference line: ``is_theorem`` and
    ``reason`` of the result say which. Training state does not matter: only the architecture and
    frozen parameters do. The model is copied and left as it is.

    Args:
        model: any module; its mode (training or evaluation) is respected.
        example_input: one batch as ``model`` takes it: a tensor, a tuple of positional or a dict of
            keyword arguments, samples in the first dimension. Only shapes and dtypes matter.
        loss: ``"mse"``, ``"cross_entropy"``, or a loss module or function of ``torch.nn``.
        data: inputs whose span and number limit the bound: a batch like ``example_input``, or an
            iterable of such batches or of ``(inputs, targets)`` pairs. ``None``: any data.
        input_rank: rank of the uncentred input covariance, where it is known without data.
        kind: ``"closed-form"`` (fully connected chains), ``"generic"`` (exact generic rank, for
            small networks), ``"patch"`` (any multilinear network), ``"auto"``: the smallest valid
            bound at a cost of seconds.

    Raises:
        BoundNotAvailableError: the network has no multilinear surrogate, or ``kind`` does not
            apply to it; the message names the layer and the reason.
        TypeError: ``model`` is not a module, or ``loss`` is not recognised.
        ValueError: no trainable parameters, or arguments that contradict each other.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    loss = loss_kind(loss)
    with isolated_generators():
        shadow = float64_copy(model)
        network = module_network(shadow, example_input)
        given = None if data is None else _inputs_of(data, example_input, network.inputs)
        return linear_bound(network, loss, data=given, input_rank=input_rank, kind=kind)


def batch_bound(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], data: Any) -> RankBound:
    """Bound the rank of the loss Hessian of a network as it is, on given data.

    A theorem for every network and loss: any activation, normalisation in either mode, attention,
    losses that couple samples. It comes from the ranks of the activations and of the backpropagated
    signals over the data, layer by layer, at the network's weights
    (see :mod:`lightning_hessrank.bounds.batch`). The model is copied and left as it is.

    Args:
        model: called as ``model(inputs)``, in the mode it is in; random masks are those of one
            draw.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar mean over the samples.
        data: one ``(inputs, targets)`` pair or an iterable of pairs.

    Raises:
        BoundNotAvailableError: the loss does not depend on the parameters, or batches run through
            the network in different ways.
        TypeError: ``model`` is not a module or ``data`` no pairs.
        ValueError: no trainable parameters, no data, or an empty batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with isolated_generators():
        shadow = float64_copy(model)
        parameters = {name: p for name, p in shadow.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError(
                "the network has no trainable parameters, so there is no Hessian to bound"
            )
        like = next(iter(parameters.values()))
        pairs = [_cast(pair, like) for pair in _pairs(data)]
        if not pairs:
            raise ValueError("data has no batches; pass (inputs, targets) pairs")
        if any(
            len(t) == 0
            for x, _ in pairs
            for t in tree_leaves(x)
            if isinstance(t, Tensor) and t.ndim
        ):
            raise ValueError("data has a batch without samples; leave empty batches out")
        evaluations = [lambda x=x, y=y: loss_fn(call(shadow, x), y) for x, y in pairs]
        samples = sum(_count(x) for x, _ in pairs)
        return live_batch_bound(evaluations, parameters, samples)


def _pairs(data: Any) -> list[tuple[Any, Any]]:
    """One pair, or all of an iterable of pairs."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor):
        return [(data[0], data[1])]
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be an (inputs, targets) pair or an iterable of them, got "
            f"{type(data).__name__}"
        )
    return [(batch[0], batch[1]) for batch in data]


def _cast(tree: Any, like: Tensor) -> Any:
    """Floating tensors in the parameters' dtype, all on their device."""

    def change(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(like) if x.is_floating_point() else x.to(like.device)

    return tree_map(change, tree)


def _count(inputs: Any) -> int:
    leaf = next((x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim), None)
    return 0 if leaf is None else len(leaf)


def module_network(module: nn.Module, example: Any) -> Network:
    """See a module as a function of the floating-point tensors among its arguments."""
    leaves, spec = tree_flatten(example)
    parameter = next(module.parameters(), torch.zeros(()))
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    inputs = tuple(leaves[i].detach().to(parameter) for i in places)
    size = len(inputs[0]) if inputs and inputs[0].ndim else 0

    def forward(chosen: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count = len(chosen[0]) if chosen else size
        values = [_resized(x, size, count) for x in leaves]
        for i, x in zip(places, chosen, strict=True):
            values[i] = x
        outputs = call(module, tree_unflatten(values, spec))
        return tuple(
            x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()
        )

    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return Network(forward, inputs, trainable)


def call(module: nn.Module, arguments: Any) -> Any:
    """Call a module with a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(arguments, Mapping):
        return module(**arguments)
    if isinstance(arguments, (tuple, list)):
        return module(*arguments)
    return module(arguments)


def float64_copy(model: nn.Module) -> nn.Module:
    """Deep copy in double precision; on the CPU where the device has none.

    Results left on a module (the weight of a pruned layer, which a hook computes anew) are parts of
    a graph, which cannot be copied: they become NaN, so that using a stale one shows.
    """
    values = [value for part in model.modules() for value in vars(part).values()]
    results = [x for x in values if isinstance(x, Tensor) and not x.is_leaf]
    shadow = copy.deepcopy(model, {id(x): torch.full_like(x.detach(), torch.nan) for x in results})
    if any(x.device.type == "mps" for x in shadow.parameters()):
        shadow = shadow.cpu()
    return shadow.to(torch.float64)


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Leave the global random generators of torch, numpy and Python as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _resized(value: Any, size: int, count: int) -> Any:
    """Repeat the first sample of an argument that is not varied, for another number of samples."""
    if isinstance(value, Tensor) and value.ndim and len(value) == size and count != size:
        return value[:1].expand(count, *value.shape[1:])
    return value


def _inputs_of(data: Any, example: Any, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Concatenate the floating-point inputs of all batches."""
    batches = [_leaves_like(batch, example, like) for batch in _batches(data, example)]
    if not batches:
        raise ValueError("data has no batches; pass inputs, or leave data out for any data")
    return tuple(torch.cat(column) for column in zip(*batches, strict=True))


def _batches(data: Any, example: Any) -> Iterable[Any]:
    """The batches of ``data``: itself, if it has the form of one."""
    single = isinstance(data, (Tensor, Mapping)) or (
        isinstance(data, tuple) and len(data) > 0 and isinstance(data[0], Tensor)
    )
    if single:
        return [data]
    if not isinstance(data, Iterable):
        raise TypeError(
            "data must be inputs like example_input, or an iterable of batches, "
            f"got {type(data).__name__}"
        )
    return data


def _leaves_like(batch: Any, example: Any, like: tuple[Tensor, ...]) -> list[Tensor]:
    if isinstance(batch, (tuple, list)) and isinstance(batch[0], type(example)):
        batch = batch[0]  # (inputs, targets)
    leaves = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.is_floating_point()]
    shapes = [tuple(x.shape[1:]) for x in leaves]
    expected = [tuple(x.shape[1:]) for x in like]
    if shapes != expected:
        raise ValueError(
            f"data must have samples of shapes {expected}, like example_input, got {shapes}"
        )
    return [x.detach().to(y) for x, y in zip(leaves, like, strict=True)]
