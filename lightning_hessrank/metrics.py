"""The Hessian rank as a ``torchmetrics.Metric``: batch after batch, process after process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hessrank.estimators.dense import spectrum_estimate, symmetric_eigenvalues
from lightning_hessrank.live.batch import clone_batch
from lightning_hessrank.live.reference import ReferenceData
from lightning_hessrank.live.step import model_step
from lightning_hessrank.live.subject import Subject
from lightning_hessrank.operators import LossCurvature, NonFiniteError, SymmetricOperator
from lightning_hessrank.rank import check_part, nan_estimate
from lightning_hessrank.results import Part, RankEstimate
from lightning_hessrank.tolerance import check_rtol, machine_rtol, numerical_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A sketch is this much wider than the largest rank that it is asked to tell. One column would do
#: in exact arithmetic; a few more keep the smallest eigenvalue of the core off the rounding errors.
OVERSAMPLING = 8
#: Without a gap of this factor at the cut, the count of a sketch may be off by some.
MIN_GAP = 100.0


class HessianRank(Metric):
    """Numerical rank of the Hessian of a mean loss, accumulated over batches and processes.

    The Hessian of a mean over samples is a sum over batches, and so is any fixed sketch of it:
    ``update(inputs, targets)`` adds a batch, processes add up theirs, and ``compute()`` returns the
    rank of the mean. On the same data that is :func:`lightning_hessrank.hessian_rank`.

    Each update works on a float64 copy of the model as it is then, in its present mode. The model
    must stay the same until ``reset()``: if it changes in between, the sum is a mixture of Hessians
    at different weights, which is the Hessian of nothing, and a :class:`UserWarning` says so. So
    update it in ``validation_step`` or after training, not in ``training_step``.

    The model is referred to, not owned: its parameters are not parameters of the metric, and
    ``clone()`` watches the same model. (A deep copy of a module that holds both, and pickling, copy
    the model too.)

    State: the ``p × p`` sum in ``dtype`` (``8 p²`` bytes; synchronising takes that once for every
    process), or, if ``max_rank`` is given, the ``k × k`` core ``Ωᵀ H Ω`` of a sketch with ``k =
    max_rank + 8`` fixed Gaussian probes ``Ω``, which has the rank of ``H`` as long as that stays
    below ``k`` (with probability one). A sketch that comes out full knows only that the rank is at
    least ``k``: ``compute()`` then returns ``nan`` and warns.

    Args:
        model: ``model(inputs) -> outputs``.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples.
        part: ``"total"``, ``"outer"`` (outer-product Hessian = generalised Gauss–Newton) or
            ``"functional"`` (their difference).
        rtol: relative tolerance of the count, in [0, 1); ``None``: machine precision ``p * eps``.
            A sketch keeps the rank but not the eigenvalues, so that it takes ``None`` only.
        max_rank: the largest rank that a sketch should be able to tell, such as ``total`` of a
            :func:`lightning_hessrank.rank_bound`; ``None``: the dense state.
        seed: of the probes and of randomness inside the model. The same in all processes.
        dtype: floating type of the computation and the state.
        kwargs: ``sync_on_compute``, ``process_group`` … of :class:`torchmetrics.Metric`.

    Attributes:
        estimate: the :class:`RankEstimate` behind the last value returned by ``compute`` or
            ``forward`` (tolerance, gap, eigenvalues); ``None`` before.

    Raises:
        ValueError: an argument is out of range, or the model has no trainable parameters.
        TypeError: ``model`` is not a module, or ``loss_fn`` is not callable.

    Example:
        >>> import torch
        >>> from lightning_hessrank.metrics import HessianRank
        >>> model = torch.nn.Linear(3, 2)
        >>> metric = HessianRank(model, torch.nn.functional.mse_loss)
        >>> metric.update(torch.eye(3), torch.zeros(3, 2))
        >>> metric.update(-torch.eye(3), torch.zeros(3, 2))
        >>> metric.compute()
        tensor(8.)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound: float = 0.0

    curvature: Tensor
    num_samples: Tensor

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        part: Part = "total",
        rtol: float | None = None,
        max_rank: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn must be a function loss_fn(outputs, targets) -> scalar, got {loss_fn!r}"
            )
        check_part(part)
        self.num_parameters = sum(x.numel() for x in model.parameters() if x.requires_grad)
        if self.num_parameters == 0:
            raise ValueError(
                f"{type(model).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some"
            )
        self.loss_fn = loss_fn
        self.part: Part = part
        self.rtol = None if rtol is None else check_rtol(rtol)
        self.max_rank = _check_max_rank(max_rank, rtol)
        self.seed = seed
        self.estimate: RankEstimate | None = None
        self._model = _Reference(model)
        self._measured_dtype = dtype
        self._weights: str | None = None
        self._warned = False

        size = self.sketch_width or self.num_parameters
        self.add_state("curvature", torch.zeros(size, size, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.tensor(0), dist_reduce_fx="sum")
        # MetricCollection shares one state among metrics whose states agree (nearly) after the
        # first batch. The Hessians of two models, or two parts of one, can agree there and differ
        # later; a state that equals nothing, itself included, keeps every sum separate.
        self.add_state("never_shared", torch.tensor(torch.nan), dist_reduce_fx="sum")

    @property
    def model(self) -> nn.Module:
        """The model whose Hessian is measured."""
        return self._model.module

    @property
    def sketch_width(self) -> int | None:
        """Number ``k`` of probes; ``None`` where the state is dense."""
        if self.max_rank is None or self.max_rank + OVERSAMPLING >= self.num_parameters:
            return None
        return self.max_rank + OVERSAMPLING

    def update(self, inputs: Any, targets: Any) -> None:
        """Add the Hessian of one batch at the model's present weights.

        Args:
            inputs: what the model takes, samples in the first dimension.
            targets: what ``loss_fn`` takes beside the outputs.
        """
        self._watch_weights(self._weights)
        curvature, size = hessian_sum(
            self.model,
            self.loss_fn,
            inputs,
            targets,
            part=self.part,
            sketch_width=self.sketch_width,
            seed=self.seed,
            dtype=self._measured_dtype,
        )
        # Not in place: a state that was reset in inference mode could not be written to.
        self.curvature = self.curvature + curvature.to(self.curvature.device)
        self.num_samples = self.num_samples + size

    def compute(self) -> Tensor:
        """Return the rank of the mean over all batches, a float32 scalar.

        ``nan`` where there is no data, where the loss or its Hessian was not finite, and where a
        sketch came out full; warnings say which.
        """
        self.estimate = rank_of_sum(
            self.curvature,
            int(self.num_samples),
            part=self.part,
            rtol=self.rtol,
            num_parameters=self.num_parameters,
        )
        return torch.tensor(float(self.estimate.rank), device=self.curvature.device)

    def reset(self) -> None:
        """Forget all batches; from here on the model may have other weights."""
        super().reset()
        self._weights = None
        self._warned = False

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Any]:
        """Plot one value, or a sequence of values over steps.

        Args:
            val: one or more results of ``compute`` or ``forward``; ``None``: calls ``compute``.
            ax: axes to draw into.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and return the rank of its own Hessian."""
        weights, warned = self._weights, self._warned
        value = super().forward(*args, **kwargs)  # resets, updates, and adds up
        self._warned = warned
        self._watch_weights(weights)
        return value

    def _watch_weights(self, expected: str | None) -> None:
        """Warn once if the model is not the one that the earlier batches saw."""
        trainable = [x for x in self.model.parameters() if x.requires_grad]
        weights = ReferenceData([trainable]).fingerprint()
        if expected is not None and weights != expected and not self._warned:
            self._warned = True
            warnings.warn(
                "HessianRank: the model's weights changed since the first update, so that the sum "
                "mixes Hessians at different weights; call reset() whenever the model has changed, "
                "and update in validation_step rather than in training_step",
                UserWarning,
                stacklevel=4,
            )
        self._weights = weights if expected is None else expected


class _Reference:
    """Refers to a model without making it a submodule, whose parameters the metric would own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        """Refer to the same model, or to its copy where that is part of what is being copied."""
        return _Reference(memo.get(id(self.module), self.module))


def _check_max_rank(max_rank: int | None, rtol: float | None) -> int | None:
    if max_rank is None:
        return None
    if isinstance(max_rank, bool) or not isinstance(max_rank, int):
        raise TypeError(f"max_rank must be a positive integer or None, got {max_rank!r}")
    if max_rank < 1:
        raise ValueError(f"max_rank must be a positive integer or None, got {max_rank}")
    if rtol is not None:
        raise ValueError(
            f"rtol={rtol} needs eigenvalues, which a sketch (max_rank={max_rank}) does not keep: "
            "it tells the rank at machine precision; leave out one of the two"
        )
    return max_rank


def hessian_sum(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    part: Part = "total",
    sketch_width: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, int]:
    """Return the Hessian of the loss *summed* over one batch, or a sketch of it, and the samples.

    Args:
        model: ``model(inputs) -> outputs``; left as it is.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples.
        inputs: samples in the first dimension.
        targets: of these samples.
        part: of the Hessian.
        sketch_width: number ``k`` of Gaussian probes; ``None``: the dense matrix.
        seed: of the probes and of randomness inside the model.
        dtype: of the computation.

    Returns:
        A symmetric ``(p, p)`` or ``(k, k)`` tensor, all ``nan`` (and a warning) where the loss or
        the Hessian is not finite; and the number of samples.
    """
    with torch.inference_mode(False):  # where validation batches come from
        batch = clone_batch((inputs, targets))
        subject = Subject(model, [batch], model_step(loss_fn), dtype=dtype, seed=seed)
        try:
            matrix = _batch_matrix(subject, part, sketch_width, seed)
        except NonFiniteError as error:
            warnings.warn(f"HessianRank will be nan: {error}", RuntimeWarning, stacklevel=2)
            size = sketch_width or subject.num_parameters
            matrix = torch.full((size, size), torch.nan, dtype=dtype)
        finally:
            subject.release()
        return matrix.mul_(subject.num_samples), subject.num_samples


def _batch_matrix(subject: Subject, part: Part, sketch_width: int | None, seed: int) -> Tensor:
    operator = LossCurvature(subject.loss_function()).operator(part)
    if sketch_width is None:
        matrix = operator.to_dense()
    else:
        matrix = sketch_core(operator, sketch_width, seed)
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError(f"the {part} Hessian is not finite at a finite loss")
    return matrix


def sketch_core(operator: SymmetricOperator, width: int, seed: int) -> Tensor:
    """Return ``Ωᵀ A Ω`` for ``width`` Gaussian probes, shape ``(width, width)``.

    For a symmetric ``A`` of rank below ``width`` it has the rank of ``A`` with probability one:
    ``A = V Λ Vᵀ`` gives ``(ΩᵀV) Λ (VᵀΩ)``, and the Gaussian ``width × rank`` matrix ``ΩᵀV`` has
    full column rank. The probes are drawn again block by block, so that no ``dim × width`` matrix
    is ever held.
    """
    block = min(operator.block_size, width)
    starts = range(0, width, block)

    def probes(start: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        columns = min(block, width - start)
        drawn = torch.randn(operator.dim, columns, generator=generator, dtype=operator.dtype)
        return drawn.to(operator.device)

    core = torch.empty(width, width, dtype=operator.dtype, device=operator.device)
    for right in starts:
        products = operator.matmat(probes(right))
        for left in starts:
            core[left : left + block, right : right + block] = probes(left).T @ products
    return core.add_(core.T.clone()).mul_(0.5)


def rank_of_sum(
    curvature: Tensor,
    num_samples: int,
    *,
    part: Part = "total",
    rtol: float | None = None,
    num_parameters: int,
) -> RankEstimate:
    """Return the rank of a mean Hessian from the sum that :func:`hessian_sum` makes.

    Args:
        curvature: shape ``(p, p)``, or ``(k, k)`` with ``k < p`` for the core of a sketch.
        num_samples: that were summed over.
        part: of the Hessian, for the record.
        rtol: relative tolerance of the count; ``None``: ``p * eps``.
        num_parameters: ``p``.
    """
    start = time.perf_counter()
    width = len(curvature)
    unknown = nan_estimate(
        num_parameters,
        part=part,
        rtol=rtol,
        method="dense" if width == num_parameters else "sketch",
    )
    if num_samples == 0 or not bool(torch.isfinite(curvature).all()):
        return unknown
    eigenvalues = symmetric_eigenvalues(curvature / num_samples)
    if width == num_parameters:
        return spectrum_estimate(
            eigenvalues,
            rtol=rtol,
            part=part,
            num_products=width,
            seconds=time.perf_counter() - start,
        )
    rank = numerical_rank(eigenvalues, machine_rtol(num_parameters))
    doubt = _doubt(rank.rank, rank.gap, width)
    if doubt:
        warnings.warn(f"HessianRank is nan: {doubt}", RuntimeWarning, stacklevel=2)
        return unknown
    return replace(
        unknown,
        rank=rank.rank,
        rtol=rank.rtol,
        tolerance=rank.tolerance,
        gap=rank.gap,
        num_products=width,
        seconds=time.perf_counter() - start,
    )


def _doubt(rank: int, gap: float | None, width: int) -> str | None:
    """Say why the core of a sketch does not tell the rank, or return ``None``."""
    if rank == width:
        return (
            f"the sketch of {width} columns came out full, so the rank is at least {width}; pass a "
            f"larger max_rank than {width - OVERSAMPLING}, or None for the dense state"
        )
    if gap is not None and gap < MIN_GAP:
        return (
            f"the spectrum of the sketch has no clear gap at the cut (a factor of {gap:.1f}), so "
            f"its count of {rank} need not be the Hessian's; pass max_rank=None for the dense state"
        )
    return None
