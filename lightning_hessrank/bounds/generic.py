"""The Hessian of the surrogate at random weights, inputs and residuals: ranks that none exceeds.

All entries are polynomials in the random numbers. A rank is at least ``k`` where some minor of
that size does not vanish, which a polynomial that is not zero does almost nowhere: so the rank at
random values is, with probability one, the largest that any weights, any residuals that the loss
can have and any inputs in the span can give. The same holds for the rank of a block of columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_hessrank.bounds.model import LinearModel
from lightning_hessrank.bounds.trace import Weights
from lightning_hessrank.network.autograd import pull_back


class GenericHessian:
    """Products with the functional Hessian, and the Jacobian, at one random point.

    The functional Hessian is that of ``⟨δ, f⟩`` over ``s = rank(Ω)`` samples with generic residuals
    ``δ``: any data and residuals give ``Ω = Σ δ_n (x_n, 1)ᵀ``, and each ``Ω`` is a sum over ``s``
    such samples.
    """

    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.weights: Weights = model.weights()
        for value in self.weights.values.values():
            value.requires_grad_()
        self.parameters = tuple(self.weights.values.values())
        self.size = model.num_parameters
        outputs = self._run(max(1, model.residual_samples()))
        residuals = model.cotangents(outputs)
        self._gradient = torch.autograd.grad(
            outputs,
            self.parameters,
            residuals,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def _run(self, samples: int) -> tuple[Tensor, ...]:
        return self.model.surrogate.run(self.model.sample(samples), self.weights).outputs

    def functional(self, vectors: Tensor, block: int = 256) -> Tensor:
        """Multiply the functional Hessian with ``vectors`` of shape ``(num_parameters, k)``."""
        products = []
        for columns in vectors.split(block, dim=1):
            pieces = columns.T.split([p.numel() for p in self.parameters], dim=1)
            cotangents = [
                v.reshape(-1, *p.shape) for v, p in zip(pieces, self.parameters, strict=True)
            ]
            products.append(_rows(self._gradient, self.parameters, cotangents).T)
        return torch.cat(products, dim=1) if products else torch.zeros_like(vectors)

    def jacobian(self, samples: int) -> Tensor:
        """Gradients of all outputs at generic inputs, shape ``(samples * K, num_parameters)``."""
        rows = []
        for _ in range(samples):
            outputs = self._run(1)
            for f in outputs:
                # Only what the loss sees: for softmax, differences of logits.
                units = torch.eye(f.numel(), dtype=f.dtype, device=f.device)
                units = units.reshape(-1, *f.shape)
                units = torch.stack([self.model.loss.project(u) for u in units])
                rows.append(_rows((f,), self.parameters, (units,)))
        return torch.cat(rows)


def _rows(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Tensor:
    """Gradients for a batch of cotangents, flattened side by side, shape ``(k, size)``."""
    grads = pull_back(outputs, inputs, cotangents)
    return torch.cat([g.reshape(len(g), -1) for g in grads], dim=1)
