"""A network cut at its layers: what lies between them, and the changes that it lets pass.

Every layer hands on random numbers in the place of its output ``z``, so that the input ``a`` of a
layer depends on the outputs of those before it directly, and on nothing else. Between them lie
activations, norms, products, sums: whatever the network does. A change ``δz = X z + x`` of outputs
that such a piece takes to ``δa = -(Y a + y)`` at all its ends can be made by the weights on one
side and undone by those on the other,

    δW = X W + W Y,    δb = X b + x + W y,

and the network's function stays as it is. Each end and each random cotangent is one linear equation
for ``X, x, Y, y`` and for the parameters inside the piece; the solutions are proposals.

Two designs were weighed. (a) A table of symmetries by operation, looked up along the graph: says
at once what a symmetry is called, but sees only what is in it. (b) Equations: one piece of code
for units, channels, norms, gates, heads and factors, and for what nobody thought of; it needs as
many backward passes as there are unknowns, of pieces only. (b) is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import flatten
from lightning_hessrank.bounds.live import Mixtures, gradients
from lightning_hessrank.network.autograd import pull_back_somehow
from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.network.recorder import LayerRecorder, RecordedUse

#: Unknowns of a piece up to which all channels may be mixed, not only rescaled.
MAX_MIXED = 900
#: Unknowns of a piece beyond which it is left alone, and parameters inside that may change freely.
MAX_UNKNOWNS, MAX_FREE = 1500, 400
#: Unknowns of a piece up to which their combinations are looked for on the live network as well.
MAX_TRIED = 400
#: So many times more equations than unknowns: not all of one draw are independent.
SURPLUS = 2
#: Draws of random outputs: a piece with few ends gives few equations in each.
MIN_RUNS, MAX_RUNS = 8, 96
#: Relative singular value of the equations that counts as zero.
ZERO = 1e-10


class CutRecorder(LayerRecorder):
    """Records layers, and hands on random leaves in the place of their outputs."""

    def __init__(self, parameters: Mapping[str, Tensor], seed: int) -> None:
        super().__init__(parameters)
        self._mixed = Mixtures(seed)
        self.leaves: list[Tensor] = []
        """In the order of the linear uses."""

    def hand_on(self, output: Tensor) -> Tensor:
        """A copy of a random leaf."""
        self.leaves += self._mixed([output.detach()])
        return self.leaves[-1].requires_grad_().clone()


@dataclass(frozen=True)
class Unknown:
    """Some of the unknowns of a piece."""

    kind: str
    """``X``, ``Y`` (full), ``Xd``, ``Yd`` (diagonal), ``x``, ``y`` or ``free``."""
    where: int | str
    """Number of the use, or name of the parameter."""
    size: int


@dataclass(eq=False)
class Piece:
    """What lies between some layers' outputs and the inputs that depend on them."""

    writers: list[int]
    readers: list[int]
    free: list[str]

    def unknowns(self, uses: Sequence[RecordedUse], level: int) -> list[Unknown]:
        """Of biases (level 0), rescaling (1) or mixing (2)."""
        found = [Unknown("free", name, 0) for name in self.free]
        for sides, matrix, vector in ((self.writers, "X", "x"), (self.readers, "Y", "y")):
            for i in sides:
                layer = uses[i].layer
                groups, m, c, _ = layer.slices
                n = m if matrix == "X" else c
                if uses[i].has_bias:
                    found.append(Unknown(vector, i, groups * n))
                if level == 1:
                    found.append(Unknown(f"{matrix}d", i, groups * n))
                if level == 2:
                    found.append(Unknown(matrix, i, groups * n * n))
        return found


@dataclass(frozen=True, eq=False)
class Solution:
    """Changes that a piece lets pass: for each unknown, ``(number of solutions, size)``."""

    level: int
    piece: Piece
    values: dict[Unknown, Tensor]


@dataclass(frozen=True, eq=False)
class Cut:
    """A run of the network cut at its layers."""

    uses: list[RecordedUse]
    leaves: list[Tensor]
    free: dict[str, Tensor]
    loss: Tensor
    outputs: tuple[Tensor, ...]

    def ends(self) -> list[Tensor]:
        """Inputs of the layers, then outputs of the network."""
        return [*(use.layer.input for use in self.uses), *self.outputs]


def cut(evaluate: Callable[[], Evaluation], parameters: Mapping[str, Tensor], seed: int) -> Cut:
    """Run the network cut at its layers."""
    recorder = CutRecorder(parameters, seed)
    with torch.enable_grad(), recorder:
        loss, outputs = evaluate()
    uses = [use for use in recorder.finish() if use.is_linear]
    covered = frozenset[str]().union(*(use.names for use in uses))
    free = {
        name: p for name, p in parameters.items() if name not in covered and p.numel() <= MAX_FREE
    }
    return Cut(uses, recorder.leaves, free, loss, tuple(outputs))


def pieces(run: Cut) -> list[Piece]:
    """Group what depends on each other."""
    starts: list[Tensor] = [*run.leaves, *run.free.values()]
    names: list[int | str] = [*range(len(run.leaves)), *run.free]
    groups: list[tuple[set[int | str], set[int]]] = []
    for end, tensor in enumerate(run.ends()):
        if not tensor.requires_grad:
            continue
        grads = torch.autograd.grad(tensor.sum(), starts, retain_graph=True, allow_unused=True)
        behind = {name for name, g in zip(names, grads, strict=True) if g is not None}
        touching = [g for g in groups if g[0] & behind]
        groups = [g for g in groups if not g[0] & behind]
        ends = {end}.union(*(g[1] for g in touching))
        groups.append((behind.union(*(g[0] for g in touching)), ends))
    return [
        Piece(
            sorted(x for x in begin if isinstance(x, int)),
            sorted(x for x in ends if x < len(run.uses)),
            sorted(x for x in begin if isinstance(x, str)),
        )
        for begin, ends in groups
    ]


@dataclass(eq=False)
class Equations:
    """What the cotangents at the ends see of every start: the coefficients of the unknowns."""

    run: Cut
    cotangents: list[Tensor]
    """``(k, *shape)`` for each layer's input."""
    at_leaves: list[Tensor]
    at_free: dict[str, Tensor]

    def coefficients(self, unknown: Unknown) -> Tensor:
        """``(k, size)``."""
        if unknown.kind == "free":
            return flatten([self.at_free[str(unknown.where)]])
        i = int(unknown.where)
        layer, is_output = self.run.uses[i].layer, unknown.kind in {"X", "Xd", "x"}
        seen = self.at_leaves[i] if is_output else self.cotangents[i]
        value = self.run.leaves[i] if is_output else layer.input
        groups = layer.slices.groups
        g = torch.stack([layer.images(x) for x in seen]).unflatten(2, (groups, -1))
        v = layer.images(value.detach()).unflatten(1, (groups, -1))
        if unknown.kind in {"x", "y"}:
            return g.sum((1, 4)).flatten(1)
        if unknown.kind in {"Xd", "Yd"}:
            return (g * v).sum((1, 4)).flatten(1)
        return torch.einsum("kngas,ngbs->kgab", g, v).flatten(1)

    def unseen_shifts(self, use: int) -> Tensor:
        """Rows that are orthogonal to the changes of channels that no end sees, ``(rows, m)``."""
        layer = self.run.uses[use].layer
        rows = [layer.images(x).movedim(1, -1).flatten(0, 1) for x in self.at_leaves[use]]
        return torch.linalg.qr(torch.cat(rows), mode="r").R


def equations(
    evaluate: Callable[[], Evaluation], parameters: Mapping[str, Tensor], count: int
) -> Iterator[Equations]:
    """Yield blocks of ``count`` equations, each from random numbers of its own."""
    for seed in range(MAX_RUNS):
        run = cut(evaluate, parameters, seed)
        mixed = Mixtures(MAX_RUNS + seed)
        inputs = [use.layer.input for use in run.uses]
        cotangents = mixed([x.detach().expand(count, *x.shape) for x in inputs])
        at_outputs = _visible(run, mixed, count)
        starts = [*run.leaves, *run.free.values()]
        ends = [*inputs, *run.outputs]
        found = pull_back_somehow(ends, starts, [*cotangents, *at_outputs])
        found, n = [x.detach() for x in found], len(run.leaves)
        yield Equations(run, cotangents, found[:n], dict(zip(run.free, found[n:], strict=True)))


def _visible(run: Cut, mixed: Mixtures, count: int) -> list[Tensor]:
    """Cotangents of the outputs that the loss can see: of its gradient and its curvature."""
    slopes = gradients((run.loss,), run.outputs, create_graph=True)
    directions = mixed([f.detach().expand(count, *f.shape) for f in run.outputs])
    curved = pull_back_somehow(slopes, run.outputs, directions)
    return [
        bent + torch.linspace(-1, 1, count).to(f).reshape(-1, *(1,) * f.ndim) * slope.detach()
        for f, bent, slope in zip(run.outputs, curved, slopes, strict=True)
    ]


def everything(piece: Piece, unknowns: Sequence[Unknown]) -> Solution:
    """All changes around a piece, whether it lets them pass or not."""
    unit = torch.eye(sum(u.size for u in unknowns), dtype=torch.float64)
    split = unit.split([u.size for u in unknowns], dim=1)
    return Solution(3, piece, dict(zip(unknowns, split, strict=True)))


def solve(
    evaluate: Callable[[], Evaluation], parameters: Mapping[str, Tensor], block: int = 32
) -> tuple[list[Solution], dict[int, Tensor]]:
    """Find the changes that the pieces of a network let pass.

    Returns:
        Solutions of every piece and level; as level 3 all changes around it, some combinations of
        which may not be seen on given data (units that never switch, statistics of a batch). And
        for every use an orthonormal basis of the changes of its channels that nothing sees.
    """
    first = cut(evaluate, parameters, 0)
    found = pieces(first)
    sizes = {name: p.numel() for name, p in first.free.items()}
    systems = [system for piece in found for system in _systems(piece, first.uses, sizes)]
    rows: list[list[Tensor]] = [[] for _ in systems]
    wanted = [SURPLUS * sum(u.size for u in unknowns) for _, _, unknowns in systems]
    gathered = [0] * len(systems)
    shifts: dict[int, list[Tensor]] = {i: [] for i in range(len(first.uses))}
    for number, some in enumerate(equations(evaluate, parameters, block)):
        if len(some.run.uses) != len(first.uses):
            return [], {}  # what runs depends on the numbers
        for i, (piece, _, unknowns) in enumerate(systems):
            if gathered[i] < wanted[i] or number < MIN_RUNS:
                rows[i].append(torch.cat([some.coefficients(u) for u in unknowns], dim=1))
                ends = sum(some.run.uses[r].layer.input.numel() for r in piece.readers)
                gathered[i] += min(block, max(1, ends))
        for use, seen in shifts.items():
            seen.append(some.unseen_shifts(use))
        if number >= MIN_RUNS and all(x >= y for x, y in zip(gathered, wanted, strict=True)):
            break
    solutions = [
        _null(piece, level, unknowns, torch.cat(r))
        for (piece, level, unknowns), r in zip(systems, rows, strict=True)
    ]
    solutions += [
        everything(piece, unknowns)
        for piece, level, unknowns in systems
        if level == 2 and sum(u.size for u in unknowns) <= MAX_TRIED
    ]
    return [s for s in solutions if s is not None], {
        use: null_space(torch.cat(seen)) for use, seen in shifts.items()
    }


def _systems(
    piece: Piece, uses: Sequence[RecordedUse], sizes: Mapping[str, int]
) -> Iterator[tuple[Piece, int, list[Unknown]]]:
    for level, limit in ((0, MAX_UNKNOWNS), (1, MAX_UNKNOWNS), (2, MAX_MIXED)):
        unknowns = [
            Unknown("free", u.where, sizes[str(u.where)]) if u.kind == "free" else u
            for u in piece.unknowns(uses, level)
        ]
        if 0 < sum(u.size for u in unknowns) <= limit:
            yield piece, level, unknowns


def _null(piece: Piece, level: int, unknowns: Sequence[Unknown], rows: Tensor) -> Solution | None:
    basis = null_space(rows)
    if not basis.shape[1]:
        return None
    split = basis.T.split([u.size for u in unknowns], dim=1)
    return Solution(level, piece, dict(zip(unknowns, split, strict=True)))


def null_space(rows: Tensor) -> Tensor:
    """Orthonormal basis, ``(width, number)``."""
    rows = rows.to("cpu", torch.float64)
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    _, values, vectors = torch.linalg.svd(rows, full_matrices=True)
    largest = float(values.max()) if len(values) else 0.0
    rank = int((values > ZERO * largest).sum())
    return vectors[rank:].T
