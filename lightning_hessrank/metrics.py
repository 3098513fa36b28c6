"""The Hessian rank as a ``torchmetrics.Metric``: batch after batch, process after process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hessrank.api import check_choice, check_model
from lightning_hessrank.estimators.sketch import OVERSAMPLING
from lightning_hessrank.network.batches import fingerprint
from lightning_hessrank.network.losses import LossCallable, loss_function
from lightning_hessrank.results import PARTS, Part, RankEstimate
from lightning_hessrank.sums import hessian_sum, rank_of_sum
from lightning_hessrank.tolerance import check_rtol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples, or a loss of
            ``torch.nn``; see :func:`lightning_hessrank.hessian_rank`.
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
        loss_fn: LossCallable | str,
        *,
        part: Part = "total",
        rtol: float | None = None,
        max_rank: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_model(model)
        check_choice("part", part, PARTS)
        self.num_parameters = sum(x.numel() for x in model.parameters() if x.requires_grad)
        if self.num_parameters == 0:
            raise ValueError(
                f"{type(model).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some"
            )
        self.loss_fn = loss_function(loss_fn)
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
        # MetricCollection shares one state among metrics whose states agree (nearly) after the
        # first batch. The Hessians of two models, or two parts of one, can agree there and differ
        # later; a state that equals nothing, itself included, keeps every sum separate. It comes
        # first: torchmetrics before 1.5 compared the first state only.
        self.add_state("never_shared", torch.tensor(torch.nan), dist_reduce_fx="sum")
        self.add_state("curvature", torch.zeros(size, size, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.tensor(0), dist_reduce_fx="sum")

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

        With the first batch, a product is compared with finite differences of gradients.

        Args:
            inputs: what the model takes, samples in the first dimension.
            targets: what ``loss_fn`` takes beside the outputs.

        Raises:
            WrongProductError: Hessian-vector products are not the derivative of the gradient.
            NoSecondDerivativeError: an operation has none.
        """
        first = self._weights is None
        self._watch_weights(self._weights)
        curvature, size = hessian_sum(
            self.model,
            self.loss_fn,
            inputs,
            targets,
            part=self.part,
            sketch_width=self.sketch_width,
            verify=first,
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
        weights = fingerprint([trainable])
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
