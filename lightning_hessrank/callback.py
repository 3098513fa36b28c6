"""The callback: schedule, history and logging around measurements that need no Trainer."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from lightning_hessrank.dashboard import Dashboard, scalars
from lightning_hessrank.live.clock import Clock
from lightning_hessrank.live.measure import Ranks, measure
from lightning_hessrank.live.network import reference_bound
from lightning_hessrank.live.reference import ReferenceData, as_batches
from lightning_hessrank.live.step import LossFn, module_step
from lightning_hessrank.live.subject import Subject
from lightning_hessrank.operators import NonFiniteError
from lightning_hessrank.rank import nan_estimate
from lightning_hessrank.results import BoundNotAvailableError, Measurement, RankBound
from lightning_hessrank.tolerance import check_rtol

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback
else:
    # `pytorch_lightning` and `lightning.pytorch` are separate class hierarchies, and each Trainer
    # insists on its own: a subclass of both is welcome everywhere.
    _HOMES = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
    _found = [m for m in _HOMES if importlib.util.find_spec(m.split(".")[0])]
    Callback = type("Callback", tuple(importlib.import_module(m).Callback for m in _found), {})


class HessianRankWarning(UserWarning):
    """A measurement failed or means less than it seems; training went on."""


class HessianRankMonitor(Callback):
    """Measure the rank of the loss Hessian of the live model while it trains.

    ``Trainer(callbacks=[HessianRankMonitor()])`` is all that it takes. Each measurement happens on
    a float64 copy of the module and leaves weights, buffers, optimisers, generators, metrics and
    flags of the run bitwise as they were.

    The quantity is the numerical rank of the Hessian of the mean loss over the *reference data*
    with respect to the trainable parameters, at the live weights: the number of eigenvalues beyond
    ``rtol * max|λ|``. Data, mode, method and tolerance are the same at every measurement of a run.

    It measures once before the first optimiser step, then on schedule, and at the end of ``fit`` if
    the schedule did not just fall there.

    Args:
        every_n_epochs: measure at the end of every n-th training epoch. ``None``: 1, unless
            ``every_n_steps`` is given, which replaces the epoch schedule.
        every_n_steps: measure after every n-th optimiser step.
        method: ``"dense"``, ``"sketch"``, ``"lanczos"``, or ``"auto"``: cost and memory decide at
            the first measurement, once for the run.
        rtol: relative tolerance of the headline rank, in [0, 1). ``None``: machine precision
            ``p * eps`` for dense and sketch, 1e-3 for lanczos. Counts at 1e-1 … 1e-6 are always
            taken besides.
        data: reference data: a batch as ``training_step`` takes it, a ``DataLoader``, or ``None``
            for a copy of the first training batch.
        max_samples: use at most so many samples of the reference data; ``None``: all.
        loss_fn: ``loss_fn(module, batch) -> scalar``, a mean over samples, called with the copy of
            the module; ``None``: the module's own ``training_step``.
        module_mode: ``"eval"`` (dropout off, running statistics of batch norm) or ``"train"`` (what
            training sees, with randomness frozen to one draw).
        on_error: what a failed measurement does: ``"warn"`` and go on training, or ``"raise"``.
        prog_bar: also show the rank in the Trainer's progress bar, like ``log(prog_bar=True)``.
        name: first part of every logged name, and of the key in checkpoints, so that several
            monitors can run side by side.
        seed: of every random probe, and of randomness inside the step.

    Attributes:
        history: one plain dict per measurement; see :meth:`results.Measurement.record`. It survives
            checkpoint and resume.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        method: Literal["auto", "dense", "sketch", "lanczos"] = "auto",
        rtol: float | None = None,
        data: Any = None,
        max_samples: int | None = 512,
        loss_fn: LossFn | None = None,
        module_mode: Literal["eval", "train"] = "eval",
        on_error: Literal["warn", "raise"] = "warn",
        prog_bar: bool = False,
        name: str = "hessian",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_epochs is None and every_n_steps is None:
            every_n_epochs = 1
        self.every_n_epochs = _positive("every_n_epochs", every_n_epochs)
        self.every_n_steps = _positive("every_n_steps", every_n_steps)
        self.method = _choice("method", method, ("auto", "dense", "sketch", "lanczos"))
        self.rtol = None if rtol is None else check_rtol(rtol)
        self.data = data
        self.max_samples = _positive("max_samples", max_samples)
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(
                f"loss_fn must be a function loss_fn(module, batch) -> scalar, got {loss_fn!r}"
            )
        self.loss_fn = loss_fn
        self.module_mode = _choice("module_mode", module_mode, ("eval", "train"))
        self.on_error = _choice("on_error", on_error, ("warn", "raise"))
        self.prog_bar = prog_bar
        if not name or not isinstance(name, str):
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        self.name = name
        self.seed = seed
        self.dashboard = Dashboard(name=name)
        self.history: list[dict[str, Any]] = []
        self._reference: ReferenceData | None = None
        self._saved_fingerprint: str | None = None
        self._bound: RankBound | None = None
        self._bound_sought = False
        self._awaiting_first_batch = True
        self._last_step: int | None = None
        self._clock = Clock()

    # -- schedule ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and the dashboard."""
        self._awaiting_first_batch = True
        self._clock.start()
        if trainer.is_global_zero:
            self.dashboard.start(trainer.loggers)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch as reference data, and measure before the first optimiser step."""
        if not self._awaiting_first_batch:
            return
        self._awaiting_first_batch = False
        if self.history and self.history[-1]["step"] > trainer.global_step:
            self._forget()  # the same monitor in a new run
        with self._failures_warned():
            self._collect_reference(pl_module, batch)
        if not self.history:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after every ``every_n_steps`` optimiser steps."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure after every ``every_n_epochs`` epochs."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the trained network, unless that has just been done."""
        self._measure(trainer, pl_module)

    # -- one measurement -----------------------------------------------------------------------

    def _measure(self, trainer: Any, module: Any) -> None:
        """Measure, remember and log; at most once at each step."""
        if self._reference is None or self._last_step == trainer.global_step:
            return
        self._last_step = trainer.global_step
        with self._failures_warned(), self._clock.measuring():
            measurement = self._take(trainer, module)
            self.history.append(measurement.record())
            self._log(trainer, measurement)

    def _take(self, trainer: Any, module: Any) -> Measurement:
        assert self._reference is not None
        began = time.perf_counter()
        subject = Subject(
            module,
            self._reference.batches,
            module_step(module, self.loss_fn),
            training=self.module_mode == "train",
            seed=self.seed,
            trainer=trainer,
        )
        try:
            self._bound_once(subject)
            ranks = measure(subject, rtol=self.rtol)
        except NonFiniteError as error:
            self._warn(f"the rank at step {trainer.global_step} is nan: {error}")
            ranks = Ranks({"total": nan_estimate(subject.num_parameters, rtol=self.rtol)})
        finally:
            subject.release()
        return Measurement(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            total=ranks.parts["total"],
            outer=ranks.parts.get("outer"),
            functional=ranks.parts.get("functional"),
            bound=self._bound,
            loss=ranks.loss,
            seconds=time.perf_counter() - began,
            overhead=self._clock.overhead(),
        )

    def _bound_once(self, subject: Subject) -> None:
        """Find the linear bound at the first measurement; it is constant within a run."""
        if self._bound_sought:
            return
        self._bound_sought = True
        try:
            self._bound = reference_bound(subject)
        except BoundNotAvailableError as error:
            self._warn(f"the rank is logged without a bound: {error}")

    def _log(self, trainer: Any, measurement: Measurement) -> None:
        values = scalars(measurement, self.name)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})
        if self.prog_bar:
            trainer.progress_bar_metrics[f"{self.name}/rank"] = float(measurement.total.rank)
        if trainer.is_global_zero:
            self.dashboard.write(trainer.loggers, measurement, self.history, measurement.step)

    def _collect_reference(self, module: Any, first_batch: Any) -> None:
        if self._reference is not None:
            return
        if self.data is None:
            batches: Iterable[Any] = [first_batch]
        else:
            batches = as_batches(self.data, module._apply_batch_transfer_handler)
        self._reference = ReferenceData.collect(batches, self.max_samples)
        saved = self._saved_fingerprint
        if saved is not None and saved != self._reference.fingerprint():
            self._warn(
                "the reference data differ from those of the run that is resumed, so ranks before "
                "and after this point are not comparable; pass the same data=... to the monitor"
            )

    def _forget(self) -> None:
        self.history.clear()
        self._reference = None
        self._saved_fingerprint = None
        self._bound, self._bound_sought = None, False
        self._last_step = None

    # -- failures ------------------------------------------------------------------------------

    @contextmanager
    def _failures_warned(self) -> Iterator[None]:
        """Turn an error into a warning, so that training goes on, unless told to raise."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._warn(f"no rank was measured: {error}")

    def _warn(self, message: str) -> None:
        warnings.warn(f"HessianRankMonitor: {message}", HessianRankWarning, stacklevel=2)

    # -- state ---------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this monitor's state in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Return history and reference data: builtin types and tensors only."""
        reference = None if self._reference is None else self._reference.state_dict()
        return {
            "history": self.history,
            "reference": reference,
            "bound": None if self._bound is None else self._bound.to_dict(),
            "bound_sought": self._bound_sought,
            "clock": self._clock.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up history and reference data of the run that is resumed."""
        self.history = list(state_dict["history"])
        self._last_step = self.history[-1]["step"] if self.history else None
        self._clock.load_state_dict(state_dict["clock"])
        bound = state_dict["bound"]
        self._bound = None if bound is None else RankBound.from_dict(bound)
        self._bound_sought = state_dict["bound_sought"]
        reference = state_dict["reference"] or {}
        self._saved_fingerprint = reference.get("fingerprint")
        if "batches" in reference:
            self._reference = ReferenceData(reference["batches"])


def _positive(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer or None, got {value}")
    return value


_T = TypeVar("_T", bound=str)


def _choice(name: str, value: _T, choices: tuple[str, ...]) -> _T:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
