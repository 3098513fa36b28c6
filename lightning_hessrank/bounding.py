"""Bounds of a subject: the network inside a step, seen as a function of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.bounds.linear import linear_bound
from lightning_hessrank.bounds.live_bound import LiveKind, live_bound
from lightning_hessrank.network.batches import list_tensors, map_tensors
from lightning_hessrank.network.function import Network
from lightning_hessrank.network.losses import LossKind, known_loss
from lightning_hessrank.network.patience import OutOfTimeError, Within
from lightning_hessrank.network.shifts import ignores_shifts
from lightning_hessrank.results import BoundNotAvailableError, RankBound
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.output import RecognisedOutput
from lightning_hessrank.subject.step import StepResult
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.text import in_short

NO_FLOATING_INPUT = (
    "the network's output does not depend on floating-point inputs, so that its linear surrogate, "
    "which is a function of them, has no bound (batch_bound has one)"
)
ANOTHER_WAY = (
    "the step goes another way with other numbers in the network (its output was not seen there), "
    "so that its linear surrogate has no bound (batch_bound has one)"
)
#: Entries up to which a sparse tensor of a batch is an input: derivatives by it are dense.
MAX_DENSE = 2**20
#: Share of the time of a bound that one evaluation may take while a network is looked at: of one
#: that takes longer, on fewer samples.
QUICK_SHARE = 0.05
#: A batch bound takes the time of at least so many evaluations: first and second derivatives by
#: signals and parameters (about 25 were counted).
LEAST_EVALUATIONS = 10


class BoundOutOfTimeError(BoundNotAvailableError):
    """A bound takes longer than it may; seeking it again would take as long."""


class BoundInputs(NamedTuple):
    """Arguments of :func:`lightning_hessrank.bounds.linear.linear_bound`."""

    network: Network
    loss: LossKind
    data: tuple[Tensor, ...]
    """All inputs of the reference data, batches joined."""


def network_of(
    run: Callable[[Any], tuple[Tensor, ...]],
    template: Any,
    size: int,
    parameters: Mapping[str, Tensor],
    chosen: Sequence[int] | None = None,
    *,
    is_all: bool = False,
) -> Network:
    """See whatever runs on a batch as a function of the floating tensors in it.

    Args:
        run: takes a batch like ``template`` and returns the network's outputs.
        template: a batch, cast.
        size: samples in it.
        parameters: trainable ones by name, as ``run`` uses them.
        chosen: numbers of the floating tensors that are inputs; ``None``: all. The others, targets
            and weights of samples, keep their values.
        is_all: whether these are all the data that there are.
    """
    found = floating(template)
    chosen = range(len(found)) if chosen is None else chosen

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        exchanged = {id(found[i]): x for i, x in zip(chosen, inputs, strict=True)}
        # Of several rows a sample (nodes of graphs), as many as there are belong to the batch.
        whole = not inputs or len(inputs[0]) == len(found[chosen[0]])
        return run(_substitute(template, size, size if whole else len(inputs[0]), exchanged))

    inputs = tuple(found[i] for i in chosen)
    return Network(forward, inputs, parameters, lambda: not is_all and _reads(run, template))


def _reads(run: Callable[[Any], tuple[Tensor, ...]], template: Any) -> bool:
    """Whether the outputs depend on integers in a batch, found by exchanging these."""
    integers = [x for x in list_tensors(template) if x.ndim and not x.is_floating_point()]
    before = run(template)
    for x in integers:
        for other in (torch.zeros_like(x), x.roll(1, 0), x.roll(1, -1), x.add(1)):

            def exchanged(y: Tensor, x: Tensor = x, other: Tensor = other) -> Tensor:
                return other if y is x else y

            try:
                after = run(map_tensors(template, exchanged))
            except (IndexError, RuntimeError):  # there is no such token or label
                continue
            if any(not torch.equal(f, g) for f, g in zip(before, after, strict=True)):
                return True
    return False


def bound_inputs(subject: Subject, few: Subject | None = None) -> BoundInputs:
    """See the step of a subject as a network: floating tensors of a batch in, outputs out.

    Args:
        subject: the network and its data.
        few: the same on fewer samples, which are enough to see inputs, outputs and loss.

    Raises:
        BoundNotAvailableError: the output is not known, or batches do not fit together.
    """
    few = few or subject
    template = subject.batches[0]
    result = few.evaluate(few.batches[0])
    if not result.outputs:
        raise BoundNotAvailableError(
            "no known loss function was seen in the step, nor results of modules through which all "
            "of the loss depends on the parameters, so the network's output is unknown; return "
            '{"loss": loss, "output": output} or use a loss of torch.nn.functional'
        )
    columns = [floating(batch) for batch in subject.batches]
    shapes = {tuple(x.shape[1:] for x in column) for column in columns}
    if len(shapes) > 1:
        raise BoundNotAvailableError(
            "the batches of the reference data have samples of different shapes"
        )
    places = [output.place for output in result.outputs]

    def run(batch: Any) -> tuple[Tensor, ...]:
        # By place: inputs that require gradients may pass for outputs.
        at = subject.evaluate(batch).at
        assert at is not None
        try:
            return tuple(at(place) for place in places)
        except KeyError as error:
            raise BoundNotAvailableError(ANOTHER_WAY) from error

    chosen = _inputs_of(run, few)
    return BoundInputs(
        network_of(
            run,
            template,
            subject.sizes[0],
            subject.parameters,
            chosen,
            is_all=len(subject.batches) == 1,
        ),
        _loss_kind(result, subject.parameters),
        tuple(torch.cat([column[i] for column in columns]) for i in chosen),
    )


def _inputs_of(run: Callable[[Any], tuple[Tensor, ...]], subject: Subject) -> list[int]:
    """Return the numbers of the floating tensors of a batch that its outputs depend on.

    Where a step does not run with all of them in the graph (targets that a loss has no derivative
    by, numbers that go to NumPy), each is tried alone, and those that it refuses are no inputs.

    Raises:
        BoundNotAvailableError: there are none, or they are not samples of one batch.
    """
    template, size = subject.batches[0], subject.sizes[0]
    given = floating(template)

    def reached(numbers: Sequence[int]) -> list[int]:
        leaves = {id(given[i]): given[i].detach().requires_grad_() for i in numbers}
        outputs = [f.sum() for f in run(_substitute(template, size, size, leaves))]
        grads = torch.autograd.grad(outputs, list(leaves.values()), allow_unused=True)
        return [i for i, grad in zip(numbers, grads, strict=True) if grad is not None]

    numbers = range(len(given))
    try:
        found = reached(numbers) if given else []
    except RuntimeError:  # user code, run with gradients that it was not written for
        found = list(chain.from_iterable(_tried(reached, i) for i in numbers))
        if not found:
            raise
    if not found:
        raise BoundNotAvailableError(NO_FLOATING_INPUT)
    rows = {len(given[i]) for i in found}
    if len(rows) > 1:
        raise BoundNotAvailableError(
            "its inputs are not samples of one batch (of "
            f"{', '.join(map(str, sorted(rows)))} rows), so that its linear surrogate is no "
            "function of samples (batch_bound has a bound of the network itself)"
        )
    return found


def _tried(reached: Callable[[Sequence[int]], list[int]], number: int) -> list[int]:
    try:
        return reached([number])
    except RuntimeError:
        return []


def reference_bound(
    subject: Subject, max_seconds: float | None = None, *, theorem_only: bool = False
) -> RankBound:
    """Bound of the linear surrogate on the subject's own reference data.

    Args:
        subject: the network, its data and its loss.
        max_seconds: wall time after which the search ends; ``None``: no limit.
        theorem_only: whether to give up early where it would be no theorem.

    Raises:
        BoundNotAvailableError: the network has no bound; the message says why.
    """
    try:
        with undisturbed(), _patience(max_seconds):
            quick = None if max_seconds is None else QUICK_SHARE * max_seconds
            network, loss, data = bound_inputs(subject, subject.quick(quick))
            return linear_bound(network, loss, data=data, theorem_only=theorem_only)
    except BoundNotAvailableError:
        raise
    except Exception as error:  # the step is user code, here run in a way it was not written for
        raise BoundNotAvailableError(
            f"the step could not be traced without its activations ({in_short(error)})"
        ) from error


def reference_batch_bound(
    subject: Subject, max_seconds: float | None = None, *, kind: LiveKind = "auto"
) -> RankBound:
    """Bound of the network itself on the subject's reference data, at its weights.

    Args:
        subject: the network, its data and its loss.
        max_seconds: as of :func:`reference_bound`.
        kind: how to bound; ``"auto"``: the smallest bound, part by part.

    Raises:
        BoundNotAvailableError: the network is not covered; the message says why.
    """
    if max_seconds is not None and LEAST_EVALUATIONS * subject.seconds > max_seconds:
        raise _out_of_time(max_seconds)
    with undisturbed(), _patience(max_seconds):
        terms = subject.loss_function().terms
        return live_bound(
            [term.evaluate for term in terms],
            subject.parameters,
            sum(subject.sizes),
            weights=[term.weight for term in terms],
            kind=kind,
        )


@contextmanager
def _patience(max_seconds: float | None) -> Iterator[None]:
    try:
        with Within(max_seconds):
            yield
    except OutOfTimeError as error:
        assert max_seconds is not None
        raise _out_of_time(max_seconds) from error


def _out_of_time(max_seconds: float) -> BoundOutOfTimeError:
    return BoundOutOfTimeError(
        f"it takes longer than {max_seconds:.2g} s, what the time budget leaves for it; a larger "
        "max_seconds gives it time (rank_bound and batch_bound have no limit)"
    )


def floating(batch: Any) -> tuple[Tensor, ...]:
    """Return the floating tensors of a batch that have samples, and are not large sparse ones.

    Of those, such as the adjacency of a graph, derivatives would be dense: they stay as they are.
    """
    return tuple(
        x
        for x in list_tensors(batch)
        if x.is_floating_point()
        and x.ndim > 0
        and (x.layout is torch.strided or x.numel() <= MAX_DENSE)
    )


def _substitute(template: Any, size: int, count: int, exchanged: Mapping[int, Tensor]) -> Any:
    """Exchange tensors of a batch, by id; repeat the rest of it to as many samples."""

    def replace(x: Tensor) -> Tensor:
        if id(x) in exchanged:
            return exchanged[id(x)]
        if x.ndim and len(x) == size and count != size:
            return x[torch.arange(count, device=x.device) % size]
        return x

    return map_tensors(template, replace)


def _loss_kind(result: StepResult, parameters: Mapping[str, Tensor]) -> LossKind:
    dims = {_class_dim(result.loss, output, parameters) for output in result.outputs}
    names = {output.loss for output in result.outputs}
    return LossKind(
        "+".join(sorted(names)),
        class_dim=dims.pop() if len(dims) == 1 else None,
        identity_curvature=all(
            output.place.kind == "loss" and known_loss(output.loss).identity_curvature
            for output in result.outputs
        ),
    )


def _class_dim(
    loss: Tensor, output: RecognisedOutput, parameters: Mapping[str, Tensor]
) -> int | None:
    """Dimension along which the whole loss sees only differences of an output, found by trying."""
    x = output.tensor
    tried = set() if output.class_dim is None else {output.class_dim}
    if output.place.kind != "loss" and x.ndim > 1:
        tried |= {1, x.ndim - 1}
    return next((d for d in sorted(tried) if ignores_shifts(loss, x, d, parameters)), None)
