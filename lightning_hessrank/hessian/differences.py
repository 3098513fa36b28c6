"""Products with a Hessian from central differences of gradients, where autograd has none.

PyTorch cannot differentiate some operations twice (``EmbeddingBag``, ``cdist``, CTC). Their
gradients are right, and ``Hv = d/dt ∇ℓ(θ + tv)`` is taken by differences: the fourth-order formula
``(4 D(h) - D(2h)) / 3`` of central differences ``D`` (Richardson's extrapolation), whose error is
``O(h⁴) + O(eps / h)``, some 1e-11 in float64 for smooth networks.

The step is the one at which products change least when it is made smaller, tried on Gaussian
directions and on single parameters; that change is the error. Counts are told only at tolerances
that it allows: with a relative error ``e`` of products with Gaussian vectors, which is that of
``‖E‖_F / ‖H‖_F``, eigenvalues move by at most ``‖E‖₂ ≤ e ‖H‖_F ≤ e √p max|λ|`` (Weyl).

What a step takes out of the graph is held at its value meanwhile, and entries without a gradient
are not moved, as autograd has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_hessrank.hessian.function import LossFunction, check_finite
from lightning_hessrank.hessian.graph import Batching, Graph
from lightning_hessrank.hessian.memory import graph_bytes
from lightning_hessrank.hessian.moving import flat, moved
from lightning_hessrank.hessian.operator import SymmetricOperator
from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.network.held import HeldValues
from lightning_hessrank.results import Part

#: Steps that are tried, relative to the size of the parameters.
STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
#: Tolerances are at least this many errors: the error itself is an estimate.
SAFETY = 10.0
#: Relative disagreement of ``vᵀHw`` and ``wᵀHv``, in errors, beyond which there is no Hessian.
ASYMMETRY = 100.0

Vector = Callable[[Tensor], Tensor]
"""A vector as a function of the parameters."""


class DifferenceCurvature:
    """The Hessian of a loss and its parts, from first derivatives at parameters near the live ones.

    The functional part is ``d/dt J(θ + tv)ᵀ r`` with the residual ``r`` held; the outer one
    ``Jᵀ (∇²ℓ) (d/dt f(θ + tv))`` where the loss itself has second derivatives by the outputs, else
    the difference of the other two.

    Raises:
        NonFiniteError: the loss is not finite.
    """

    def __init__(self, function: LossFunction, *, seed: int = 0) -> None:
        """Choose the step.

        Args:
            function: the loss; its parameters are moved, and put back.
            seed: of the directions along which steps are tried.
        """
        self.names = tuple(function.parameters)
        self.parameters = tuple(function.parameters.values())
        self.num_parameters = function.num_parameters
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self._terms = tuple(function.terms)
        self._held = [HeldValues() for _ in self._terms]
        self._here = flat(self.parameters)
        self._graphs: list[Graph] = []
        evaluations = self._evaluate(self._here)
        for held, evaluation in zip(self._held, evaluations, strict=True):
            held.recording = False
            check_finite(evaluation)
            self._graphs.append(
                Graph(self.parameters, evaluation.loss, evaluation.outputs, Batching())
            )
        self.loss = sum(
            term.weight * float(g.loss.detach())
            for term, g in zip(self._terms, self._graphs, strict=True)
        )
        self.term_bytes = max(graph_bytes((graph.loss,)) for graph in self._graphs)
        """Bytes that the graph of the largest term's loss holds."""
        self.outputs_known = all(graph.outputs for graph in self._graphs)
        self._residuals = [self._residual(graph) for graph in self._graphs]
        self._bends = self.outputs_known and all(map(_bends, self._graphs))
        generator = torch.Generator().manual_seed(seed)
        size = max(float(self._here.norm()), 1e-3 * math.sqrt(self.num_parameters))
        self._free = self._gradient(self._here + 1e-3 * size * self._random(generator)) != 0
        self.step, self.error, self.asymmetry = self._choose_step(size, generator)

    @property
    def resolution(self) -> float:
        """Smallest relative tolerance at which the error of products allows a count."""
        return SAFETY * self.error * math.sqrt(self.num_parameters)

    def operator(
        self, part: Part = "total", parameters: Sequence[str] | None = None
    ) -> DifferenceOperator:
        """Return the Hessian or one of its parts, or the diagonal block of some parameters."""
        chosen = set(self.names if parameters is None else parameters)
        marks = [
            torch.full((x.numel(),), name in chosen, device=self.device)
            for name, x in zip(self.names, self.parameters, strict=True)
        ]
        return DifferenceOperator(self, part, torch.cat(marks).nonzero().squeeze(1))

    def product(self, part: Part, vector: Tensor) -> Tensor:
        """Multiply a part with one vector, both of shape ``(num_parameters,)``."""
        return self._product(part, vector, self.step)

    def _product(self, part: Part, vector: Tensor, step: float) -> Tensor:
        size = float(vector.norm())
        if size == 0:
            return torch.zeros_like(vector)
        vector, step = vector * self._free, step / size
        if part == "total":
            product = _derivative(self._gradient, self._here, vector, step)
        elif part == "functional":
            product = _derivative(self._residual_gradient, self._here, vector, step)
        elif self._bends:
            product = self._outer(_derivative(self._outputs, self._here, vector, step))
        else:
            total = _derivative(self._gradient, self._here, vector, step)
            product = total - _derivative(self._residual_gradient, self._here, vector, step)
        return product * self._free

    def _gradient(self, where: Tensor) -> Tensor:
        return self._pulled_back(where, lambda evaluation, _: ((evaluation.loss,), None))

    def _residual_gradient(self, where: Tensor) -> Tensor:
        return self._pulled_back(
            where, lambda evaluation, i: (evaluation.outputs, self._residuals[i])
        )

    def _pulled_back(
        self,
        where: Tensor,
        choose: Callable[[Evaluation, int], tuple[Sequence[Tensor], Sequence[Tensor] | None]],
    ) -> Tensor:
        total = torch.zeros_like(where)
        with moved(self.parameters, where):
            for i, term in enumerate(self._terms):
                tensors, cotangents = choose(self._run(i), i)
                grads = torch.autograd.grad(
                    tensors, self.parameters, cotangents, allow_unused=True, materialize_grads=True
                )
                total += term.weight * torch.cat([g.flatten() for g in grads])
        return total

    def _outputs(self, where: Tensor) -> Tensor:
        """All outputs in one vector."""
        evaluations = self._evaluate(where)
        return torch.cat([f.detach().flatten() for e in evaluations for f in e.outputs])

    def _outer(self, change: Tensor) -> Tensor:
        """``Jᵀ (∇²ℓ) u`` for a change ``u`` of all outputs."""
        total = torch.zeros(self.num_parameters, dtype=self.dtype, device=self.device)
        pieces = iter(change.split([f.numel() for g in self._graphs for f in g.outputs]))
        for term, graph in zip(self._terms, self._graphs, strict=True):
            pushed = [next(pieces).reshape(1, *f.shape) for f in graph.outputs]
            pulled = graph.pull_back(graph.bend(pushed), self.parameters)
            total += term.weight * torch.cat([x.flatten() for x in pulled])
        return total

    def _evaluate(self, where: Tensor) -> list[Evaluation]:
        with moved(self.parameters, where):
            return [self._run(i) for i in range(len(self._terms))]

    def _run(self, number: int) -> Evaluation:
        held: AbstractContextManager[object] = self._held[number]
        with torch.enable_grad(), held:
            return self._terms[number].evaluate()

    @staticmethod
    def _residual(graph: Graph) -> tuple[Tensor, ...]:
        return graph.detached_output_gradient() if graph.outputs else ()

    def _random(self, generator: torch.Generator) -> Tensor:
        vector = torch.randn(self.num_parameters, generator=generator, dtype=torch.float64)
        return (vector / vector.norm()).to(self._here)

    def _choose_step(self, size: float, generator: torch.Generator) -> tuple[float, float, float]:
        """Return the step whose products change least, that change, and the asymmetry there."""
        gaussian = [self._random(generator) for _ in range(2)]
        free = self._free.nonzero().squeeze(1)
        chosen = free[torch.randint(len(free), (2,), generator=generator)] if len(free) else free
        single = [torch.zeros_like(self._here).index_fill_(0, i, 1.0) for i in chosen.unsqueeze(1)]
        tried: list[tuple[float, float, list[Tensor]]] = []
        before: list[Tensor] = []
        for larger, step in itertools.pairwise(s * size for s in STEPS):
            if not before:
                before = [self._product("total", v, larger) for v in (*gaussian, *single)]
            now = [self._product("total", v, step) for v in (*gaussian, *single)]
            scale = max(float(x.norm()) for x in now[:2]) or 1.0
            change = max(float((x - y).norm()) for x, y in zip(before, now, strict=True)) / scale
            tried.append((change, step, now))
            before = now
        error, step, (one, two, *_) = min(tried, key=lambda x: x[0])
        scale = max(float(one.norm()), float(two.norm())) or 1.0
        return step, error, abs(float(gaussian[1] @ one - gaussian[0] @ two)) / scale


class DifferenceOperator(SymmetricOperator):
    """A part of the Hessian by differences, or its diagonal block for some parameters."""

    def __init__(self, curvature: DifferenceCurvature, part: Part, places: Tensor) -> None:
        self._curvature = curvature
        self._part = part
        self._places = places
        self.dim = len(places)
        self.dtype, self.device = curvature.dtype, curvature.device
        self.block_size = 16
        self.name = f"{part} Hessian"

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``; four gradients for each."""
        full = vectors.new_zeros(self._curvature.num_parameters, vectors.shape[1])
        full[self._places] = vectors
        products = [self._curvature.product(self._part, v)[self._places] for v in full.T]
        return torch.stack(products, dim=1) if products else torch.zeros_like(vectors)

    def dense_cost(self) -> float:
        """Return the time of :meth:`to_dense`, in products."""
        return float(self.dim)


def _derivative(function: Vector, here: Tensor, direction: Tensor, step: float) -> Tensor:
    """``d/dt function(here + t direction)`` at zero, of fourth order in the step."""

    def central(h: float) -> Tensor:
        return (function(here + h * direction) - function(here - h * direction)) / (2 * h)

    return (4 * central(step) - central(2 * step)) / 3


def _bends(graph: Graph) -> bool:
    """Whether the loss has second derivatives by the outputs."""
    try:
        graph.bend([torch.zeros_like(f).unsqueeze(0) for f in graph.outputs])
    except RuntimeError:
        return False
    return True
