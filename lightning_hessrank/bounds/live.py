"""One batch at the live weights: its layers, the signals at their outputs, and what reads those.

Whether a number of a layer's output matters is read off derivatives: where the mixed derivative of
the gradient by it vanishes along a random direction, it vanishes along all, with probability one.
The zeros are exact ones: nothing downstream reads the number, or a piecewise linear unit is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import gaussian_like, matrix_rank
from lightning_hessrank.network.autograd import graph_edges, pull_back_somehow
from lightning_hessrank.network.function import Evaluation, layer_name
from lightning_hessrank.network.gate import closed_gates
from lightning_hessrank.network.recorder import LayerRecorder, RecordedUse
from lightning_hessrank.network.shifts import ignores_shifts
from lightning_hessrank.results import PARTS, BoundNotAvailableError, NonFiniteError, Part

#: Relative disagreement of gradients beyond which a use must have been missed.
TOLERANCE = 1e-8
#: Outputs of a batch up to which the rank of the loss's curvature in them is computed.
MAX_OUTPUTS = 512
#: Steps that bring the rows of a curvature to like size.
BALANCING = 10


@dataclass(frozen=True, eq=False)
class LiveUse:
    """A call of a layer on one batch, with what happens behind it."""

    use: RecordedUse
    signal: Tensor
    """Of the loss at the layer's output, of its shape."""
    residual_signal: Tensor
    """Of ``⟨r, F⟩`` with the residuals ``r`` held fixed."""
    is_cut: bool = False
    """Whether all that the outputs know of the parameters goes through this use."""
    reached: Mapping[Part, Tensor] = field(default_factory=dict)
    """Which numbers of the output the derivatives that make up a part depend on."""
    moved: Tensor | None = None
    """Which numbers of the input depend on parameters; ``None``: all may."""


@dataclass(frozen=True, eq=False)
class LiveBatch:
    """One batch: uses that are linear in activation and weight, and parameters used otherwise."""

    loss: Tensor
    """With its graph, as are the outputs."""
    outputs: tuple[Tensor, ...]
    uses: list[LiveUse]
    uncovered: frozenset[str]
    """Parameters with a use that is not linear in an activation."""
    unseen: frozenset[str]
    """Those of them that were never seen in an operation."""
    curved_outputs: int | None
    """Rank of the loss's curvature by the outputs, at most; ``None``: outputs unknown."""
    passes_through: bool
    """Whether the loss depends on the parameters through the outputs only."""
    ignores_shifts: bool = False
    """Whether the loss sees only differences of its one output along dimension 1."""
    weight: float = 1.0
    """Its share of the mean loss."""


def read_batch(evaluate: Callable[[], Evaluation], parameters: Mapping[str, Tensor]) -> LiveBatch:
    """Run a batch, and read from its graph what bounds need.

    Raises:
        BoundNotAvailableError: the loss does not depend on the parameters.
        NonFiniteError: the loss, or an input or signal of a layer, is nan or inf.
    """
    recorder = LayerRecorder(parameters)
    with torch.enable_grad(), recorder:
        loss, outputs = evaluate()
    if not loss.requires_grad:
        raise BoundNotAvailableError(
            "the loss does not depend on any parameter, so there is no Hessian to bound"
        )
    uses = [use for use in recorder.finish() if use.is_linear]
    at = [*(use.output for use in uses), *parameters.values()]
    grads = gradients((loss,), at)
    signals, of_parameters = grads[: len(uses)], grads[len(uses) :]
    _check_finite(loss, uses, signals)
    for use in uses:
        use.behind_softmax = use.behind_softmax and ignores_shifts(loss, use.output, 1, parameters)
    uncovered = _uncovered(recorder, uses, signals, of_parameters, parameters)
    slopes = output_slopes(loss, outputs)
    single = len(outputs) == 1 and outputs[0].ndim > 1
    shifts = single and ignores_shifts(loss, outputs[0], 1, parameters)
    residuals = [r.detach() for r in slopes]
    held = gradients(outputs, at, residuals)[: len(uses)] if outputs else signals
    reached = _reached(loss, outputs, residuals, uses, parameters)
    moved = _moved(uses, parameters)
    cuts = [_is_cut(use, outputs, parameters) for use in uses]
    return LiveBatch(
        loss,
        tuple(outputs),
        [LiveUse(*found) for found in zip(uses, signals, held, cuts, reached, moved, strict=True)],
        uncovered,
        uncovered - recorder.touched,
        _curved_outputs(outputs, slopes, shifts) if outputs else None,
        bool(outputs) and _passes_through(loss, outputs, parameters),
        shifts,
    )


def gradients(
    ys: Sequence[Tensor],
    xs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients, zeros where there is no dependence; the graph is kept."""
    cotangents = [torch.ones_like(y) for y in ys] if cotangents is None else cotangents
    behind = [(y, v) for y, v in zip(ys, cotangents, strict=True) if y.requires_grad]
    if not behind:
        return [torch.zeros_like(x) for x in xs]
    return list(
        torch.autograd.grad(
            [y for y, _ in behind],
            xs,
            [v for _, v in behind],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def output_slopes(loss: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """``∂ℓ/∂f``, with a graph: of the loss alone, where outputs are computed from each other."""
    with closed_gates():
        return gradients((loss,), outputs, create_graph=True) if outputs else []


def bend(
    slopes: Sequence[Tensor], outputs: Sequence[Tensor], pushed: Sequence[Tensor]
) -> list[Tensor]:
    """``(∇²ℓ) u`` for changes ``u`` of the outputs, with a leading batch dimension."""
    with closed_gates():
        return pull_back_somehow(slopes, outputs, pushed)


def _reached(
    loss: Tensor,
    outputs: Sequence[Tensor],
    residuals: Sequence[Tensor],
    uses: Sequence[RecordedUse],
    parameters: Mapping[str, Tensor],
) -> list[dict[Part, Tensor]]:
    """For every use and part, the numbers of the output that matter (absent: all may)."""
    at, own = [use.output for use in uses], list(parameters.values())
    mixed = Mixtures()

    def of_gradient(ys: Sequence[Tensor], cotangents: Sequence[Tensor] | None) -> list[Tensor]:
        gradient = gradients(ys, own, cotangents, create_graph=True)
        return gradients(gradient, at, mixed(gradient))

    derivatives: dict[Part, Callable[[], list[Tensor]]] = {
        "total": lambda: of_gradient((loss,), None)
    }
    if outputs:
        derivatives["functional"] = lambda: of_gradient(outputs, residuals)
        derivatives["outer"] = lambda: gradients(outputs, at, mixed(outputs))
    found: list[dict[Part, Tensor]] = [{} for _ in uses]
    for part in PARTS:
        try:
            rows = derivatives[part]() if part in derivatives else []
        except RuntimeError:  # an operation without second derivative: all numbers count
            rows = []
        for i, row in enumerate(rows):
            found[i][part] = row.detach() != 0
    return found


def _moved(
    uses: Sequence[RecordedUse], parameters: Mapping[str, Tensor]
) -> Sequence[Tensor | None]:
    """For every use, the numbers of the input that change as the parameters do."""
    inputs, mixed = [use.layer.input for use in uses], Mixtures()
    u = [torch.zeros_like(a, requires_grad=True) for a in inputs]
    try:
        # Linear in u: its derivative is the change of the inputs along a random direction.
        back = gradients(inputs, list(parameters.values()), u, create_graph=True)
        return [x.detach() != 0 for x in gradients(back, u, mixed(back))]
    except RuntimeError:  # an operation without second derivative: all numbers count
        return [None] * len(uses)


class Mixtures:
    """Random tensors like others, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Gaussian ones of the same shapes."""
        return [gaussian_like(x, self._generator) for x in xs]


def _curved_outputs(outputs: Sequence[Tensor], slopes: Sequence[Tensor], shifts: bool) -> int:
    """Rank of the curvature of the loss by its outputs, at most: ``N K'`` or less."""
    sizes = [f.numel() for f in outputs]
    size = sum(sizes)
    seen = size - (size // outputs[0].shape[1] if shifts else 0)
    if size > MAX_OUTPUTS:
        return seen
    unit = torch.eye(size, dtype=slopes[0].dtype, device=slopes[0].device)
    units = [u.reshape(size, *f.shape) for u, f in zip(unit.split(sizes, 1), outputs, strict=True)]
    rows = bend(slopes, outputs, units)
    return min(seen, matrix_rank(balanced(torch.cat([x.reshape(size, -1) for x in rows], dim=1))))


def balanced(matrix: Tensor) -> Tensor:
    """``D S D`` of a symmetric matrix, with rows of like size: the rank is that of ``S``.

    Outputs of which a loss is nearly certain have a curvature far below rounding of that of others,
    which is no reason not to count it.
    """
    for _ in range(BALANCING):
        size = matrix.detach().abs().amax(dim=1)
        scale = torch.where(size > 0, size.rsqrt(), torch.ones_like(size))
        matrix = scale[:, None] * matrix * scale
    return matrix


def _is_cut(use: RecordedUse, outputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> bool:
    """Whether outputs depend on parameters through one use of a layer only, its bias apart."""
    bias = use.layer.bias if use.has_bias else None
    own = {id(x) for name, x in parameters.items() if name not in use.names or x is not bias}
    return bool(outputs) and not any(
        id(getattr(node, "variable", None)) in own for node, _ in graph_edges(outputs, [use.output])
    )


def _passes_through(
    loss: Tensor, outputs: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> bool:
    own = {id(p) for p in parameters.values()}
    return not any(
        id(getattr(node, "variable", None)) in own for node, _ in graph_edges([loss], outputs)
    )


def _uncovered(
    recorder: LayerRecorder,
    uses: Sequence[RecordedUse],
    signals: Sequence[Tensor],
    of_parameters: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
) -> frozenset[str]:
    """Parameters whose gradient is not the sum over their linear uses."""
    explained = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for use, signal in zip(uses, signals, strict=True):
        for name, part in _direct_gradients(use, signal, parameters).items():
            explained[name] += part
    used = frozenset[str]().union(*(use.names for use in uses))
    uncovered = set()
    for name, gradient in zip(parameters, of_parameters, strict=True):
        size = max(float(gradient.abs().max()), float(explained[name].abs().max()))
        unseen = name in recorder.elsewhere or (bool(gradient.any()) and name not in used)
        if unseen or float((gradient - explained[name]).abs().max()) > TOLERANCE * size:
            uncovered.add(name)
    return frozenset(uncovered)


def _check_finite(loss: Tensor, uses: Sequence[RecordedUse], signals: Sequence[Tensor]) -> None:
    """Raise :class:`NonFiniteError`, with the first layer forwards or backwards that shows it."""
    inputs = [(use, "input", use.layer.input) for use in uses]
    gradients = [
        (use, "gradient at the output", signal) for use, signal in zip(uses, signals, strict=True)
    ]
    for use, what, x in (*inputs, *reversed(gradients)):
        bad = int((~torch.isfinite(x.detach())).sum()) if x.layout == torch.strided else 0
        if bad:
            raise NonFiniteError(
                f"the {what} of layer '{layer_name(min(use.names))}' is not finite ({bad} of "
                f"{x.numel()} values): look at the weights and the data"
            )
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(f"the loss is not finite ({float(loss.detach())}): look at the data")


def _direct_gradients(
    use: RecordedUse, signal: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients that this one use contributes to its parameters."""
    layer = use.layer
    leaves = [layer.weight.detach().requires_grad_()]
    with torch.enable_grad():
        z = layer.apply(layer.input.detach(), leaves[0])
        if layer.bias is not None:
            leaves.append(layer.bias.detach().requires_grad_())
            z = layer.add_bias(z, leaves[1])
    parts = torch.autograd.grad(z, leaves, signal)
    return to_parameters(use, parts, parameters)


def to_parameters(
    use: RecordedUse, parts: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Bring something of the weight's (and bias's) shape to the parameters that these show.

    Both are parameters or rearranged pieces of them, so the gradient does that.
    """
    layer, names = use.layer, sorted(use.names)
    ends = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    pairs = [(x, g) for x, g in zip(ends, parts, strict=True) if x.requires_grad]
    grads = torch.autograd.grad(
        [x for x, _ in pairs],
        [parameters[name] for name in names],
        [g for _, g in pairs],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, grads, strict=True))
