"""The bound of a network's linear surrogate: the choice between the ways to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from lightning_hessrank.bounds.analytic import analytic_bound
from lightning_hessrank.bounds.closed_form import ClosedForm, biased_chain_rank, chain_rank
from lightning_hessrank.bounds.model import LinearModel, linear_model
from lightning_hessrank.bounds.patch import Ranks, patch_ranks
from lightning_hessrank.bounds.sampling import generic_ranks, generic_width, sharpened
from lightning_hessrank.bounds.trace import INPUT, LayerUse
from lightning_hessrank.network.function import Network
from lightning_hessrank.network.losses import LossKind
from lightning_hessrank.network.patience import OutOfTimeError
from lightning_hessrank.results import (
    BoundKind,
    BoundNotAvailableError,
    LayerBound,
    RankBound,
)

LinearKind = Literal["auto", "closed-form", "generic", "patch"]


def linear_bound(
    network: Network,
    loss: LossKind,
    *,
    data: Sequence[Tensor] | None = None,
    input_rank: int | None = None,
    kind: LinearKind = "auto",
    seed: int = 0,
    theorem_only: bool = False,
) -> RankBound:
    """Bound the rank of the loss Hessian of the network's linear surrogate.

    Args:
        network: the network; its tensors should be float64.
        loss: what the loss can see of the output.
        data: inputs like ``network.inputs`` (any number of samples) whose span and number limit
            the bound, which then holds for these data; ``None``: any data.
        input_rank: rank of the input covariance, where it is known without data.
        kind: how to bound; ``"auto"`` takes the smallest bound that is valid.
        seed: of the random weights and inputs at which generic ranks are taken.
        theorem_only: whether to give up before anything takes long where the network is not its own
            surrogate.

    Raises:
        BoundNotAvailableError: the network has no multilinear surrogate, the kind that was asked
            for does not apply to it, or the bound would be no theorem and has to be one.
        ValueError: an argument makes no sense.
    """
    _check_arguments(data, input_rank, kind)
    model: LinearModel | BoundNotAvailableError
    try:
        model = linear_model(network, loss, data=data, input_rank=input_rank, seed=seed)
    except BoundNotAvailableError as error:
        model = error
    own: RankBound | Exception | None = None
    if not theorem_only:
        own = _of_network_itself(network, model, loss, data=data, kind=kind, seed=seed)
    if isinstance(own, RankBound):
        return own
    if isinstance(model, BoundNotAvailableError):
        if own is None or kind == "auto":
            raise model
        raise BoundNotAvailableError(f"{model}; and {own}") from own
    if theorem_only and model.trace.replaced:
        raise BoundNotAvailableError(_reason(model))
    found, ranks = _choose(model, kind)
    return RankBound(
        total=ranks.total,
        outer=ranks.outer,
        functional=ranks.functional,
        layers=tuple(
            LayerBound(name, model.layer_size(name), ranks.columns[name]) for name in model.layers
        ),
        num_parameters=model.num_parameters,
        kind=found,
        is_theorem=not model.trace.replaced,
        reason=_reason(model),
        input_rank=model.span.rank,
        num_samples=model.span.num_samples,
        outputs=model.outputs,
    )


def _of_network_itself(
    network: Network,
    surrogate: LinearModel | BoundNotAvailableError,
    loss: LossKind,
    *,
    data: Sequence[Tensor] | None,
    kind: LinearKind,
    seed: int,
) -> RankBound | Exception | None:
    """The generic rank of the network itself, or why not; ``None`` where it is not asked for.

    It is asked for by name, where the network is not its own surrogate, and on given data where
    there is no surrogate.
    """
    if isinstance(surrogate, LinearModel):
        wanted, loss = kind == "generic" and bool(surrogate.trace.replaced), surrogate.loss
    else:
        wanted = kind == "generic" or (kind == "auto" and data is not None)
    if not wanted or not network.inputs:
        return None
    count = None if data is None else len(data[0])
    try:
        return analytic_bound(network, loss, num_samples=count, seed=seed)
    except OutOfTimeError:
        raise
    except Exception as error:  # the network is user code; what there is of the surrogate is left
        return error


def _choose(model: LinearModel, kind: LinearKind) -> tuple[BoundKind, Ranks]:
    """The ranks of one kind; for ``"auto"`` the smallest that takes seconds."""
    if model.is_whole:
        return "generic", _whole_ranks(model, kind)
    if kind in {"auto", "closed-form"}:
        form = closed_form(model)
        if isinstance(form, ClosedForm):
            return "closed-form", _layered(model, form)
        if kind == "closed-form":
            raise BoundNotAvailableError(f"no closed form: {form}")
    bound = patch_ranks(model)
    width = generic_width(model, bound)
    if kind == "generic" and width is None:
        raise BoundNotAvailableError(
            f"the exact generic rank of this network ({model.num_parameters:,} parameters, rank up "
            f"to {bound.total:,}) would take too long; pass kind='patch' or kind='auto'"
        )
    if kind != "patch" and width is not None:
        exact = generic_ranks(model, bound, width)
        if exact is not None:
            return "generic", exact
        if kind == "generic":
            raise BoundNotAvailableError(
                "the exact generic rank of this network cannot be told from rounding: its spectrum "
                "has no clear gap; pass kind='patch' or kind='auto'"
            )
    return "patch", sharpened(model, bound)


def _whole_ranks(model: LinearModel, kind: LinearKind) -> Ranks:
    """Exact generic ranks on a batch whose samples mix: nothing is known of its layers' columns."""
    p, sizes = model.num_parameters, {x: model.layer_size(x) for x in model.layers}
    rows = sum(f.numel() for f in model.trace.outputs)
    bound = Ranks(p, min(p, rows), p, sizes, sizes)
    width = generic_width(model, bound) if kind in {"auto", "generic"} else None
    exact = None if width is None else generic_ranks(model, bound, width)
    if exact is None:
        raise BoundNotAvailableError(
            "the network's output for one sample depends on other samples of the batch, for which "
            "there is only the exact generic rank on the whole batch, and that "
            + ("would take too long" if width is None else "cannot be told from rounding")
            + " here (batch_bound has no such condition)"
        )
    return exact


def _check_arguments(data: Sequence[Tensor] | None, input_rank: int | None, kind: str) -> None:
    if kind not in get_args(LinearKind):
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, get_args(LinearKind)))}, got {kind!r}"
        )
    if data is not None and input_rank is not None:
        raise ValueError("pass data or input_rank, not both: the data have a rank of their own")
    if isinstance(input_rank, bool) or not isinstance(input_rank, (int, type(None))):
        raise TypeError(f"input_rank must be a whole number, got {input_rank!r}")
    if input_rank is not None and input_rank < 0:
        raise ValueError(f"input_rank must be a whole number from 0 on, got {input_rank!r}")


def closed_form(model: LinearModel) -> ClosedForm | str:
    """Closed form of section 2, or the reason why the network has none."""
    uses = model.trace.uses
    reason = _not_a_chain(model)
    if reason is not None:
        return reason
    widths = [use.layer.slices.rows for use in uses[:-1] if use.layer is not None]
    biased = [bool(use.biases) for use in uses]
    if not any(biased):
        if model.has_constant:
            return "a constant that is not a trainable bias enters"
        form = chain_rank(widths, model.span.rank, model.outputs)
    elif all(biased):
        biased_form = biased_chain_rank(widths, model.span.affine_rank, model.outputs)
        if biased_form is None:
            return (
                "with biases, the closed form needs every hidden width to be at least "
                f"min(r + 1, K') = {min(model.span.affine_rank, model.outputs)}, got {min(widths)}"
            )
        form = biased_form
    else:
        return "some layers have a bias and some have none"
    return form


def _not_a_chain(model: LinearModel) -> str | None:
    """Why the network is not a chain of fully connected layers, if it is not."""
    uses = model.trace.uses
    for use in uses:
        reason = _not_a_link(model, use)
        if reason is not None:
            return f"layer '{use.owner}' {reason}"
    names = [name for use in uses for name in use.names]
    if len(names) != len(set(names)):
        return "some layers share their parameters"
    if not uses or model.trace.sources != (len(uses) - 1,):
        return "the output is not that of a fully connected layer"
    return None


def _not_a_link(model: LinearModel, use: LayerUse) -> str | None:
    layer = use.layer
    if layer is None or layer.slices[0] != 1 or layer.slices.taps != 1 or layer.input.ndim != 2:
        return "is not fully connected"
    if use.source != (use.index - 1 if use.index else INPUT):
        return "does not simply follow the layer before it"
    whole = sum(model.network.parameters[name].numel() for name in use.weights)
    if not use.is_linear or whole != layer.weight.numel():
        return "has a weight computed from parameters"
    if layer.input.shape != (len(model.trace.inputs[0]), layer.slices.columns):
        return "works on several positions of a sample"
    return None


def _layered(model: LinearModel, form: ClosedForm) -> Ranks:
    """The closed form with its columns by layer, capped by parameters and samples."""
    columns, p, n = dict.fromkeys(model.layers, 0), model.num_parameters, model.span.num_samples
    for use, column in zip(model.trace.uses, form.columns, strict=True):
        layer = use.owner
        columns[layer] = min(model.layer_size(layer), column)
    outer = min(p, form.outer, p if n is None else n * model.outputs)
    return Ranks(min(p, form.total), outer, min(p, form.functional), columns, columns)


def _reason(model: LinearModel) -> str:
    if not model.trace.replaced:
        return "The network is linear in its input and in every layer, so the bound holds for it."
    names = ", ".join(sorted(model.trace.replaced))
    return (
        f"Reference line: the bound of the linear surrogate, which has no {names}; the rank of the "
        "network itself can exceed it."
    )
