"""What goes wrong is said once, counted, and raised where that was asked for."""

from __future__ import annotations

import warnings

import pytest

from lightning_hessrank.hessian.verify import WrongProductError
from lightning_hessrank.monitor.failures import Failures, HessianRankWarning, cause_of


def said(failures: Failures, *errors: Exception) -> list[str]:
    """What is said of errors, one after the other."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for error in errors:
            with failures.handled("no rank", among="measurements"):
                raise error
        failures.summarise()
    assert {w.category for w in caught} <= {HessianRankWarning}
    return [str(w.message).removeprefix("HessianRankMonitor: ") for w in caught]


def test_each_cause_is_said_once_and_the_number_at_the_end() -> None:
    failures = Failures("warn")
    hint = " (on_error='raise' shows the traceback)"
    assert said(failures, OSError("a"), OSError("a"), KeyError("b")) == [
        f"no rank: OSError: a{hint}",
        f"no rank: KeyError: 'b'{hint}",
        "3 of 3 measurements failed; the reason was given above",
    ]
    assert failures.failed == {"measurements": 3}
    assert not failures.final


def test_what_would_fail_again_is_final() -> None:
    failures = Failures("warn")
    (only,) = said(failures, WrongProductError("the products are wrong"))
    assert only == "no rank: the products are wrong (it will not be tried again in this run)"
    assert failures.final


def test_silence_and_raising() -> None:
    silent = Failures("warn")
    silent.silent = True
    assert said(silent, OSError("a")) == []
    with pytest.raises(OSError, match=r"^a$"):
        said(Failures("raise"), OSError("a"))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interruptions_pass_through(interrupt: type[BaseException]) -> None:
    with pytest.raises(interrupt), Failures("warn").handled("no rank"):
        raise interrupt


def test_a_cause_has_its_type_unless_it_explains_itself() -> None:
    assert cause_of(WrongProductError("so")) == "so"
    assert cause_of(OSError()) == "OSError"
    assert cause_of(ValueError("of the user")) == "ValueError: of the user"
