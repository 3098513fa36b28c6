"""A loss as a function of parameters, and the products with its Hessian and the two parts of it.

Two designs were weighed. (a) Functional: ``torch.func.functional_call`` with ``jvp`` of ``vjp``. It
composes well, but a ``training_step`` is not a pure function (it logs, updates buffers, draws
random numbers), and every product repeats the forward pass. (b) One evaluation, whose graph is kept
and differentiated twice. It runs user code once and as it is, serves all three parts and any number
of vectors, and needs memory for one graph. (b) wins; where that memory is lacking the evaluation
is repeated, since a :class:`LossTerm` is a function and not a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_hessrank.hessian.blocks import sampled_layers
from lightning_hessrank.hessian.factor import outer_factor
from lightning_hessrank.hessian.function import (
    LossFunction,
    LossTerm,
    check_finite,
)
from lightning_hessrank.hessian.graph import Batching, Graph
from lightning_hessrank.hessian.memory import graph_bytes, is_out_of_memory, memory_limit
from lightning_hessrank.hessian.operator import SymmetricOperator, multiply_in_blocks
from lightning_hessrank.hessian.parts import PartOperator
from lightning_hessrank.hessian.rewrite import CheaperDerivatives
from lightning_hessrank.hessian.root import agrees, outputs_per_sample, random_vectors
from lightning_hessrank.hessian.samples import SampleHessian
from lightning_hessrank.network.recorder import LayerRecorder
from lightning_hessrank.results import Part

#: Bytes that a block of vectors may fill with intermediate results, by type of device. Measured on
#: CPU: products are fastest while these stay in the cache; a GPU wants much work at once.
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**30}
MAX_BLOCK = 256
#: Bytes of the graphs that products need, in units of those of the loss alone (measured: 3 to 4).
GRAPH_GROWTH = 4


class OutputsUnknownError(ValueError):
    """The parts were asked for, but the tensor that enters the loss is not known."""


class LossCurvature:
    """Hessian of a loss function and its parts, from one retained graph per batch.

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
        self.batching = Batching()
        self._terms = tuple(function.terms)
        self._max_bytes = memory_limit(self.device) if max_bytes is None else max_bytes
        self._retained: list[Graph] | None = []
        self.loss = 0.0
        self.outputs_known = True
        self.term_bytes = 0
        """Bytes that the graph of the largest term's loss holds."""
        held = 0
        for term in self._terms:
            graph = self._evaluate(term)
            self.loss += term.weight * float(graph.loss.detach())
            self.outputs_known &= bool(graph.outputs)
            size = graph_bytes((graph.loss,))
            self.term_bytes = max(self.term_bytes, size)
            held += GRAPH_GROWTH * size
            if held > self._max_bytes:
                self._retained = None
            if self._retained is not None:
                self._retained.append(graph)
        self.block_size = self._block_size()
        if self.block_size == 1:
            self.batching.disable("the intermediate results of a single vector fill a block")

    @property
    def retains_graphs(self) -> bool:
        """Whether the terms' graphs are kept, rather than built again for every block."""
        return self._retained is not None

    def operator(
        self, part: Part = "total", parameters: Sequence[str] | None = None
    ) -> SymmetricOperator:
        """Return the Hessian (``"total"``) or one of its parts as an operator.

        Args:
            part: which part.
            parameters: names of some parameters: only their diagonal block; ``None``: all.

        Raises:
            OutputsUnknownError: a part of a loss whose network output is unknown.
            ValueError: an unknown name, or no name.
        """
        if part != "total" and not self.outputs_known:
            raise OutputsUnknownError(
                f"part={part!r} needs the network's output, but no known loss function was seen; "
                'return {"loss": loss, "output": output} from the step or loss_fn, or use a loss '
                "of torch.nn.functional"
            )
        return PartOperator(self, part, self._indices(parameters))

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

    def graphs(self) -> Iterator[tuple[float, Graph]]:
        """Yield weight and graph of every term; graphs that are not retained are built anew."""
        for i, term in enumerate(self._terms):
            yield (
                term.weight,
                self._evaluate(term) if self._retained is None else self._retained[i],
            )

    def gradient(self) -> Tensor:
        """Gradient of the loss, shape ``(num_parameters,)``."""
        total = torch.zeros(self.num_parameters, dtype=self.dtype, device=self.device)
        for weight, graph in self.graphs():
            flat = torch.cat([x.detach().flatten() for x in graph.gradient])
            total.add_(flat, alpha=weight)
        return total

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and products."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters and products."""
        return self.parameters[0].device

    def _evaluate(self, term: LossTerm, recorder: LayerRecorder | None = None) -> Graph:
        with torch.enable_grad(), CheaperDerivatives(), recorder or nullcontext():
            evaluation = term.evaluate()
        check_finite(evaluation)
        return Graph(self.parameters, evaluation.loss, evaluation.outputs, self.batching)

    def add_sampled(
        self,
        part: Part,
        start: Mapping[int, int],
        matrix: Tensor,
        report: Callable[[int], None],
    ) -> frozenset[int]:
        """Add blocks of a part's matrix from derivatives of every sample, where that is cheaper.

        See :mod:`lightning_hessrank.hessian.samples`. What is added has to be symmetrised, and
        checked.

        Args:
            part: which part.
            start: number of a parameter -> its first row in the matrix.
            matrix: to add to.
            report: called between blocks with the number of rows done.

        Returns:
            Numbers of the parameters between which all blocks were added; if none, the matrix may
            hold anything.
        """
        rows = {id(self.parameters[i]): row for i, row in start.items()}
        found: frozenset[int] | None = None
        for number, term in enumerate(self._terms):
            hessian, done = self._sample(term, part, tuple(start))
            found = done if found is None else found
            if hessian is None or done != found:
                return frozenset()
            size = sum(self.sizes[i] for i in done)
            for share, block in hessian.blocks():
                block.add_to(matrix, rows, term.weight)
                report(int(size * (number + share) / len(self._terms)))
        return found or frozenset()

    def dense_cost(self, part: Part, indices: Sequence[int]) -> float:
        """Time that the dense matrix takes, in products; evaluates one term."""
        try:
            hessian, done = self._sample(self._terms[0], part, indices)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            hessian, done = None, frozenset()
        left = sum(self.sizes[i] for i in indices if i not in done)
        if hessian is None:
            return left / 2
        # Fitted to networks of the benchmarks: passes for z are cheaper than products, and the
        # contractions take about an eighth of a product for every column.
        sampled = sum(self.sizes[i] for i in done)
        return left + hessian.cost / 4 + sampled / 8

    def _sample(
        self, term: LossTerm, part: Part, indices: Sequence[int]
    ) -> tuple[SampleHessian | None, frozenset[int]]:
        """Derivatives of every sample, where they pay, and numbers of the parameters they cover."""
        recorder = LayerRecorder(dict(zip(self.names, self.parameters, strict=True)))
        graph = self._evaluate(term, recorder)
        layers = sampled_layers(graph, recorder.uses, {id(self.parameters[i]) for i in indices})
        owned = {id(x) for layer in layers for x in (layer.weight, layer.bias)}
        done = frozenset(i for i in indices if id(self.parameters[i]) in owned)
        nothing = (None, frozenset[int]())
        if not done or (part != "functional" and outputs_per_sample(graph) is None):
            return nothing
        hessian = SampleHessian(graph, layers, part)
        if hessian.bytes > self._max_bytes or 2 * hessian.cost > sum(self.sizes[i] for i in done):
            return nothing
        return hessian, done

    def outer_factor(self, indices: Sequence[int], max_rows: int) -> Tensor | None:
        """Return ``G`` with ``H_o = GᵀG`` and fewer rows than ``max_rows``, where there is one.

        See :mod:`lightning_hessrank.hessian.factor`. Evaluates the terms once more.
        """
        rows = 0
        factors = []
        for term in self._terms:
            if term.weight < 0:
                return None
            recorder = LayerRecorder(dict(zip(self.names, self.parameters, strict=True)))
            graph = self._evaluate(term, recorder)
            if sum(f.numel() - f.shape[0] for f in graph.outputs if f.ndim > 1) >= max_rows:
                return None
            factor = outer_factor(graph, recorder.uses, indices)
            if factor is None:
                return None
            factors.append(factor.mul_(math.sqrt(term.weight)))
            rows += factor.shape[0]
            if rows >= max_rows:
                return None
        factor = torch.cat(factors)
        operator = PartOperator(self, "outer", tuple(indices))
        vectors = random_vectors(operator.dim, factor)
        products = multiply_in_blocks(operator, vectors)
        return factor if agrees(factor.T @ (factor @ vectors), products) else None

    def _block_size(self) -> int:
        """Choose the block by what one vector's intermediate results fill; not by the clock.

        So the same loss has the same blocks, and the same rounding, in every run.
        """
        each = max(1, self.term_bytes + 2 * self.num_parameters * self.dtype.itemsize)
        target = min(BLOCK_BYTES.get(self.device.type, 2**23), self._max_bytes // 4)
        return max(1, min(MAX_BLOCK, target // each))

    def _indices(self, parameters: Sequence[str] | None) -> tuple[int, ...]:
        if parameters is None:
            return tuple(range(len(self.names)))
        unknown = sorted(set(parameters) - set(self.names))
        if unknown or not parameters:
            raise ValueError(
                f"parameters must name some of {', '.join(self.names)}; got "
                f"{', '.join(unknown) if unknown else 'no name'}"
            )
        return tuple(i for i, name in enumerate(self.names) if name in set(parameters))
