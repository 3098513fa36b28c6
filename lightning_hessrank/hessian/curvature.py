"""The terms of a loss, evaluated; their graphs, kept; and the Hessian times vectors.

Two designs were weighed. (a) Functional: ``torch.func.functional_call`` with ``jvp`` of ``vjp``. It
composes well, but a ``training_step`` is not a pure function (it logs, updates buffers, draws
random numbers), and every product repeats the forward pass. (b) One evaluation, whose graph is kept
and differentiated twice. It runs user code once and as it is, serves all three parts and any number
of vectors, and needs memory for one graph. (b) wins; where that memory is lacking the evaluation
is repeated, since a :class:`LossTerm` is a function and not a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_hessrank.hessian.function import LossFunction, LossTerm, check_finite
from lightning_hessrank.hessian.graph import Batching, Graph
from lightning_hessrank.hessian.memory import graph_bytes, memory_limit
from lightning_hessrank.hessian.rewrite import CheaperDerivatives
from lightning_hessrank.network.recorder import LayerRecorder
from lightning_hessrank.results import Part

#: Bytes that a block of vectors may fill with intermediate results, by type of device. Measured on
#: CPU: products are fastest while these stay in the cache; a GPU wants much work at once.
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**30}
MAX_BLOCK = 256
#: Bytes of the graphs that products need, in units of those of the loss alone (measured: 3 to 4).
GRAPH_GROWTH = 4


class Curvature:
    """Products with the Hessian of a loss function and its parts, from one graph for each batch.

    With outputs ``f(θ)`` and loss ``ℓ(f)``, ``H = Jᵀ (∇²ℓ) J + Σ_k (∂ℓ/∂f_k) ∇²f_k``: the
    outer-product Hessian (= generalised Gauss–Newton) and the functional Hessian (Singh, Bachmann,
    Hofmann, arXiv 2106.16225, section 2). The functional part is differentiated directly, not as a
    difference, which would lose it in rounding where residuals are small.

    Raises:
        NonFiniteError: at construction, if the loss is not finite.
    """

    def __init__(self, function: LossFunction, *, max_bytes: int | None = None) -> None:
        """Evaluate every term once.

        Args:
            function: the loss.
            max_bytes: what graphs may hold in memory; beyond, a term is evaluated again for every
                block of products. ``None``: half of the free memory.
        """
        if not function.parameters:
            raise ValueError("a loss function without parameters has no Hessian")
        self.names = tuple(function.parameters)
        self.parameters = tuple(function.parameters.values())
        self.num_parameters = function.num_parameters
        self.sizes = tuple(x.numel() for x in self.parameters)
        self.terms = tuple(function.terms)
        self.batching = Batching()
        self.max_bytes = memory_limit(self.device) if max_bytes is None else max_bytes
        self._retained: list[Graph] | None = []
        self.loss = 0.0
        self.outputs_known = True
        self.term_bytes = 0
        """Bytes that the graph of the largest term's loss holds."""
        held = 0
        for term in self.terms:
            graph = self.evaluate(term)
            self.loss += term.weight * float(graph.loss.detach())
            self.outputs_known &= bool(graph.outputs)
            size = graph_bytes((graph.loss,))
            self.term_bytes = max(self.term_bytes, size)
            held += GRAPH_GROWTH * size
            if held > self.max_bytes:
                self._retained = None
            if self._retained is not None:
                self._retained.append(graph)
        self.block_size = self._block_size()
        if self.block_size == 1:
            self.batching.disable("the intermediate results of a single vector fill a block")

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and products."""
        return self.parameters[0].dtype

    @property
    def named(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return dict(zip(self.names, self.parameters, strict=True))

    @property
    def device(self) -> torch.device:
        """Of the parameters and products."""
        return self.parameters[0].device

    @property
    def retains_graphs(self) -> bool:
        """Whether the terms' graphs are kept, rather than built again for every block."""
        return self._retained is not None

    def evaluate(self, term: LossTerm, recorder: LayerRecorder | None = None) -> Graph:
        """Evaluate a term anew; ``recorder`` sees the layers that it calls."""
        with torch.enable_grad(), CheaperDerivatives(), recorder or nullcontext():
            evaluation = term.evaluate()
        check_finite(evaluation)
        return Graph(self.parameters, evaluation.loss, evaluation.outputs, self.batching)

    def graphs(self) -> Iterator[tuple[float, Graph]]:
        """Yield weight and graph of every term; graphs that are not retained are built anew."""
        for i, term in enumerate(self.terms):
            graph = self.evaluate(term) if self._retained is None else self._retained[i]
            yield term.weight, graph

    def multiply(
        self, part: Part, columns: Mapping[int, Tensor], rows: Sequence[int]
    ) -> list[Tensor]:
        """Multiply columns of a part, and return rows of it; see :meth:`Graph.multiply`."""
        k = next(iter(columns.values())).shape[0]
        total = [self.parameters[i].new_zeros(k, *self.parameters[i].shape) for i in rows]
        for weight, graph in self.graphs():
            for sum_, product in zip(total, graph.multiply(part, columns, rows), strict=True):
                sum_.add_(product, alpha=weight)
        return total

    def gradient(self) -> Tensor:
        """Gradient of the loss, shape ``(num_parameters,)``."""
        total = torch.zeros(self.num_parameters, dtype=self.dtype, device=self.device)
        for weight, graph in self.graphs():
            flat = torch.cat([x.detach().flatten() for x in graph.gradient])
            total.add_(flat, alpha=weight)
        return total

    def _block_size(self) -> int:
        """Choose the block by what one vector's intermediate results fill; not by the clock.

        So the same loss has the same blocks, and the same rounding, in every run.
        """
        each = max(1, self.term_bytes + 2 * self.num_parameters * self.dtype.itemsize)
        target = min(BLOCK_BYTES.get(self.device.type, 2**23), self.max_bytes // 4)
        return max(1, min(MAX_BLOCK, target // each))
