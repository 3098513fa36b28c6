"""Products with the same Hessian by other packages (``pip install lightning-hessrank[bench]``).

Each function takes a network, a loss, inputs and targets, and returns a function that multiplies
with a block of vectors, shape ``(p, k)``, in the way that the package is meant to be used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

Multiply = Callable[[Tensor], Tensor]


def curvlinops(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Multiply:
    """curvlinops-for-pytorch: forward over reverse, batched by ``vmap``."""
    from curvlinops import HessianLinearOperator

    parameters: Any = dict(net.named_parameters())
    try:
        operator = HessianLinearOperator(net, loss, parameters, [(x, y)], check_deterministic=False)
    except (TypeError, ValueError, KeyError, AttributeError):
        parameters = list(parameters.values())
        operator = HessianLinearOperator(net, loss, parameters, [(x, y)], check_deterministic=False)
    return lambda vectors: (operator @ vectors).detach()


def eigenthings(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Multiply:
    """hessian-eigenthings: one vector at a time, forward pass repeated."""
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(net, [(x, y)], lambda model, batch: loss(model(batch[0]), batch[1]))
    return lambda vectors: torch.stack([operator.matvec(v) for v in vectors.T], dim=1)


def pyhessian(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Multiply:
    """PyHessian: one vector at a time, graph of the gradient retained."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward with create_graph, on purpose
        curvature = hessian(net, loss, data=(x, y), cuda=False)

    def multiply(vectors: Tensor) -> Tensor:
        columns = []
        for v in vectors.T:
            pieces = v.split([p.numel() for p in curvature.params])
            shaped = [u.view_as(p) for u, p in zip(pieces, curvature.params, strict=True)]
            product = hessian_vector_product(curvature.gradsH, curvature.params, shaped)
            columns.append(torch.cat([u.flatten() for u in product]))
        return torch.stack(columns, dim=1)

    return multiply


PEERS = {
    name: build
    for name, module, build in (
        ("curvlinops", "curvlinops", curvlinops),
        ("hessian-eigenthings", "hessian_eigenthings", eigenthings),
        ("PyHessian", "pyhessian", pyhessian),
    )
    if find_spec(module) is not None
}
