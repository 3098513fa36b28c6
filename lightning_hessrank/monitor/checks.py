"""What is looked at before a measurement: does the step run, and is it the function that trains?"""

from __future__ import annotations

from lightning_hessrank.monitor.failures import Failures, cause_of, is_ours
from lightning_hessrank.monitor.form import Form
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.network.batches import batch_size
from lightning_hessrank.subject.comparison import (
    EvaluationModeError,
    differ,
    losses_in_both_modes,
)
from lightning_hessrank.subject.step import StepResult
from lightning_hessrank.subject.subject import Subject


class StepFailedError(RuntimeError):
    """The step raises on reference data."""


def check_subject(subject: Subject, series: Series, failures: Failures, *, step: int) -> None:
    """Evaluate a subject once, and say what is not as it was or not as it seems.

    Args:
        subject: about to be measured.
        series: of the run; what depends on the function's form is forgotten where that has changed.
        failures: which says it.
        step: of the run.

    Raises:
        StepFailedError, EvaluationModeError: the step cannot be evaluated; says what helps.
        Exception: the same, said by this package already.
    """
    form = Form.of(subject, _evaluated(subject, series))
    before, series.form = series.form, form
    if before is None:
        _compare_modes(subject, series, failures)
    elif changes := form.changes(before):
        series.forget_function()
        failures.warn_once(
            f"at step {step} the function that is measured has changed: {' and '.join(changes)}. "
            "Ranks, layers, bound and method follow; ranks before and after are not of one Hessian"
        )


def _evaluated(subject: Subject, series: Series) -> StepResult:
    try:
        return subject.evaluate(subject.batches[0])
    except Exception as error:
        if is_ours(error):
            raise
        if _is_measured_in_evaluation_mode(series):
            _blame_the_mode(subject)
        assert series.reference is not None
        if series.reference.is_cut:
            raise StepFailedError(
                f"the step fails on {subject.sizes[0]} samples cut out of a batch "
                f"({cause_of(error)}); max_samples=None takes batches whole"
            ) from error
        raise


def _blame_the_mode(subject: Subject) -> None:
    """Raise :class:`EvaluationModeError` if the step runs in training mode only."""
    try:
        losses_in_both_modes(subject)
    except EvaluationModeError:
        raise
    except Exception:  # fails in both, for another reason
        return


def _compare_modes(subject: Subject, series: Series, failures: Failures) -> None:
    if not _is_measured_in_evaluation_mode(series):
        return
    measured, trained = losses_in_both_modes(subject)
    if differ(measured, trained):
        assert series.reference is not None
        own = sum(map(batch_size, series.reference.batches))
        few = f"{subject.num_samples} samples of " if subject.num_samples < own else ""
        failures.warn_once(
            f"the loss on {few}the reference data is {measured:.6g} in evaluation mode, which is "
            f"measured, but {trained:.6g} as training computes it (dropout and batch norm aside): "
            "the module computes something else in evaluation mode; pass module_mode='train' to "
            "measure the function that is trained"
        )


def _is_measured_in_evaluation_mode(series: Series) -> bool:
    return bool(series.meaning["module_mode"] == "eval")
