"""What users call without a Trainer: the rank of a loss Hessian, and bounds on it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_hessrank.bounding import (
    floating,
    network_of,
    reference_batch_bound,
    reference_bound,
)
from lightning_hessrank.bounds.linear import LinearKind, linear_bound
from lightning_hessrank.bounds.live_bound import LiveKind
from lightning_hessrank.budget import ALWAYS_DENSE
from lightning_hessrank.estimators import method_names
from lightning_hessrank.measure import measure
from lightning_hessrank.network.batches import batch_size, list_tensors
from lightning_hessrank.network.losses import LossCallable, loss_function, loss_kind
from lightning_hessrank.network.pairs import as_pairs, call
from lightning_hessrank.network.shifts import kind_of
from lightning_hessrank.results import (
    PARTS,
    BoundNotAvailableError,
    Method,
    NonFiniteError,
    Part,
    RankBound,
    RankEstimate,
    nan_estimate,
)
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import check_rtol

#: Wall time that a theorem on the rank is worth, where none is given.
BOUND_SECONDS = 10.0


def hessian_rank(
    model: nn.Module,
    loss_fn: LossCallable | str,
    data: Any,
    *,
    part: Part = "total",
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    max_seconds: float | None = None,
) -> RankEstimate:
    """Measure the numerical rank of the Hessian of a mean loss at the model's weights.

    The model itself is not touched: everything happens on a copy, in the mode (training or
    evaluation) that each of its modules has now. Before the rank is counted, one Hessian-vector
    product is compared with finite differences of gradients.

    Args:
        model: ``model(inputs) -> outputs``; a tuple of inputs becomes positional, a dict keyword
            arguments, where ``forward`` takes them.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples; or a dict with the
            scalar as ``"loss"`` and, as ``"output"``, the tensor by which the parts are meant. Also
            a loss of ``torch.nn``: name (``"mse"``, ``"cross_entropy"``, …), function or module.
        data: one ``(inputs, targets)`` tuple, or an iterable of such pairs, which are weighted so
            that their loss is that of all samples together: by their numbers of samples as a rule,
            by what the loss goes by where labels are ignored, classes have weights or it is a sum.
        part: ``"total"``, ``"outer"`` (outer-product Hessian = generalised Gauss–Newton) or
            ``"functional"`` (their difference, differentiated directly).
        method: ``"dense"``, ``"sketch"``, ``"lanczos"``, or ``"auto"``: by cost and memory, with a
            warning where that means an estimate.
        rtol: relative tolerance in [0, 1) of the count, times ``max|λ|``; ``None``: machine
            precision ``p * eps`` (dense, sketch) or 1e-3 (lanczos).
        max_rank: a known upper bound on the rank, which makes the sketch cheap. One that is too
            small is noticed and warned of; the rank is then measured without it.
        seed: of every random probe, and of randomness inside the model.
        dtype: floating type of the computation.
        max_seconds: wall time that ``method="auto"`` may take: what it buys is decided from
            measured costs; ``None``: no limit.

    Returns:
        The rank with its tolerance, gap, method and cost. Where the loss or the Hessian is not
        finite, ``rank`` is ``nan`` and a warning says where that came from.

    Raises:
        ValueError: an argument is out of range, the data are empty or ambiguous, the loss is not a
            scalar, or no parameter requires gradients.
        TypeError: an argument has the wrong type, ``data`` are not pairs, or the loss is not a
            tensor.
        WrongProductError: Hessian-vector products are not the derivative of the gradient.
        UnresolvedError: sketch or lanczos cannot tell the count at this tolerance, or products are
            differences of gradients, whose error does not allow it.
        MemoryError: what the method needs does not fit.

    Example:
        >>> from lightning_hessrank import hessian_rank
        >>> model = torch.nn.Linear(3, 2)
        >>> data = torch.eye(3), torch.zeros(3, 2)
        >>> hessian_rank(model, torch.nn.functional.mse_loss, data, method="dense").rank
        6
    """
    check_choice("part", part, PARTS)
    check_choice("method", method, method_names())
    check_model(model)
    _check_numbers(max_rank, seed, dtype)
    if rtol is not None:
        check_rtol(rtol)
    reasons: list[str] = []
    with _subject(model, loss_fn, data, dtype=dtype, seed=seed) as subject:
        asked = method == "auto" and max_rank is None and subject.num_parameters > ALWAYS_DENSE
        try:
            ranks = measure(
                subject,
                announce=reasons.append,
                parts=(part,),
                method=method,
                rtol=rtol,
                bound=_theorem(subject, max_seconds) if asked else None,
                max_rank=max_rank,
                seed=seed,
                counts=False,
                max_seconds=max_seconds,
            )
        except NonFiniteError as error:
            warnings.warn(f"rank is nan: {error}", RuntimeWarning, stacklevel=3)
            return nan_estimate(subject.num_parameters, part=part, method=method, rtol=rtol)
        for note in ranks.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=3)
        found = ranks.parts[part]
        if method == "auto" and found.method == "lanczos":
            warnings.warn(
                f"this rank is an estimate, beyond {found.rtol:.2g} max|λ|: method='auto' has "
                f"chosen {' '.join(reasons)}. Name the method: 'lanczos' for estimates without "
                "this warning, 'dense' or 'sketch' for an exact rank, however long it takes",
                UserWarning,
                stacklevel=2,
            )
        return found


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
        loss: ``"mse"``, ``"cross_entropy"``, a loss module or function of ``torch.nn``, or any
            ``loss(outputs, targets)``, for which is found by trying whether it sees only
            differences of a sample's outputs, as a softmax does.
        data: inputs whose span and number limit the bound: a batch like ``example_input``, or an
            iterable of such batches or of ``(inputs, targets)`` pairs. ``None``: any data.
        input_rank: rank of the uncentred input covariance, where it is known without data.
        kind: ``"closed-form"`` (fully connected chains), ``"generic"`` (exact generic rank, for
            small networks: of the network itself where that is analytic in its weights, attention
            included, which is a theorem; else of the surrogate), ``"patch"`` (any multilinear
            network), ``"auto"``: the smallest valid bound of the surrogate at a cost of seconds;
            with data also the generic rank of an analytic network without one.

    Raises:
        BoundNotAvailableError: the network has no multilinear surrogate, or ``kind`` does not
            apply to it; the message names the layer and the reason.
        TypeError: ``model`` is not a module, or ``loss`` is neither recognised nor gives a loss.
        ValueError: no trainable parameters, or arguments that contradict each other.

    Example:
        >>> from lightning_hessrank import rank_bound
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Linear(4, 3))
        >>> bound = rank_bound(model, torch.zeros(1, 10), loss="cross_entropy")
        >>> bound.total, bound.num_parameters, bound.is_theorem
        (36, 59, True)
    """
    check_model(model)
    if not callable(loss):
        loss = loss_kind(loss)  # says what there is, before anything is copied
    copy = IsolatedModule(model)

    def run(batch: Any) -> tuple[Tensor, ...]:
        return floating(copy.run(lambda module: call(module, batch)))

    try:
        with undisturbed():
            example = copy.cast(example_input)
            tensors = [x for x in list_tensors(example) if x.ndim]
            size = batch_size(example) if tensors and len(tensors[0]) else 0
            network = network_of(run, example, size, copy.parameters, is_all=data is example_input)
            known = kind_of(loss, run(example))
            given = None if data is None else _inputs_of(data, example_input, network.inputs)
            return linear_bound(network, known, data=given, input_rank=input_rank, kind=kind)
    finally:
        copy.release()


def batch_bound(
    model: nn.Module, loss_fn: LossCallable | str, data: Any, *, kind: LiveKind = "auto"
) -> RankBound:
    """Bound the rank of the loss Hessian of a network as it is, on given data.

    A theorem for every network and loss: any activation, normalisation in either mode, attention,
    losses that couple samples. It comes from the ranks of the activations and of the backpropagated
    signals over the data, layer by layer, at the network's weights
    (see :mod:`lightning_hessrank.bounds.batch`), for small networks also from the directions along
    which the network does not change (:mod:`lightning_hessrank.bounds.symmetries`), and from blocks
    in which it is affine (:mod:`lightning_hessrank.bounds.affine`). The model is copied and left as
    it is.

    Args:
        model: called as in :func:`hessian_rank`, in the mode it is in; random masks are those of
            one draw.
        loss_fn: as in :func:`hessian_rank`.
        data: one ``(inputs, targets)`` tuple or an iterable of pairs.
        kind: ``"batch"``, ``"symmetry"``, or ``"auto"``: the smallest valid bound, part by part;
            ``sources`` of the result says which it was.

    Raises:
        BoundNotAvailableError: the loss does not depend on the parameters, batches run through the
            network in different ways, or ``kind`` does not apply; the message says why.
        NonFiniteError: an activation or a signal is not finite; the message says where.
        TypeError: ``model`` is not a module or ``data`` no pairs.
        ValueError: no trainable parameters, no data, an empty batch, or ambiguous data.

    Example:
        >>> from lightning_hessrank import batch_bound
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
        >>> bound = batch_bound(model, "mse", (torch.eye(3), torch.zeros(3, 4)))
        >>> bound.is_theorem, bound.num_samples
        (True, 3)
    """
    check_choice("kind", kind, get_args(LiveKind))
    check_model(model)
    if not any(x.requires_grad for x in model.parameters()):
        raise ValueError("the network has no trainable parameters, so there is no Hessian to bound")
    with _subject(model, loss_fn, data) as subject:
        return reference_batch_bound(subject, kind=kind)


@contextmanager
def _subject(model: nn.Module, loss_fn: object, data: Any, **options: Any) -> Iterator[Subject]:
    """Copy a model for a loss on pairs of data."""
    subject = Subject(model, as_pairs(data), model_step(loss_function(loss_fn)), **options)
    try:
        yield subject
    finally:
        subject.release()


def check_model(model: object) -> None:
    """Raise unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise unless an argument is one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _theorem(subject: Subject, max_seconds: float | None) -> RankBound | None:
    """A bound that makes exact methods cheap, where the network is linear and it is soon found."""
    limit = BOUND_SECONDS if max_seconds is None else min(BOUND_SECONDS, 0.2 * max_seconds)
    try:
        return reference_bound(subject, limit, theorem_only=True)
    except BoundNotAvailableError:
        return None


def _check_numbers(max_rank: object, seed: object, dtype: object) -> None:
    if max_rank is not None and (isinstance(max_rank, bool) or not isinstance(max_rank, int)):
        raise TypeError(f"max_rank must be a whole number or None, got {max_rank!r}")
    if max_rank is not None and max_rank < 0:
        raise ValueError(f"max_rank must not be negative, got {max_rank}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")


def _inputs_of(data: Any, example: Any, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Concatenate the floating-point inputs of all batches."""
    batches = [_floating_like(batch, example, like) for batch in _batches(data)]
    if not batches:
        raise ValueError("data has no batches; pass inputs, or leave data out for any data")
    return tuple(torch.cat(column) for column in zip(*batches, strict=True))


def _batches(data: Any) -> Iterable[Any]:
    """The batches of ``data``: itself, if it has the form of one."""
    if isinstance(data, (Tensor, Mapping)) or (
        isinstance(data, tuple) and len(data) > 0 and isinstance(data[0], Tensor)
    ):
        return [data]
    if not isinstance(data, Iterable):
        raise TypeError(
            "data must be inputs like example_input, or an iterable of batches, "
            f"got {type(data).__name__}"
        )
    return data


def _floating_like(batch: Any, example: Any, like: tuple[Tensor, ...]) -> list[Tensor]:
    if isinstance(batch, (tuple, list)) and isinstance(batch[0], type(example)):
        batch = batch[0]  # (inputs, targets)
    tensors = floating(batch)
    shapes = [tuple(x.shape[1:]) for x in tensors]
    expected = [tuple(x.shape[1:]) for x in like]
    if shapes != expected:
        raise ValueError(
            f"data must have samples of shapes {expected}, like example_input, got {shapes}"
        )
    return [x.detach().to(y) for x, y in zip(tensors, like, strict=True)]
