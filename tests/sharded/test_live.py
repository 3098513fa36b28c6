"""Live sharded modules in training: measured, undisturbed, and going on after failures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.monitor.sharding import check_settings
from lightning_hessrank.processes import UnsupportedStrategyError
from tests.sharded.processes import launch
from tests.training import differences

#: What is put back, each with a control that leaves it out.
CONTROLS = ("shards", "state", "generators", "logging", "gradients", "frozen")
MODES = (
    *("alone", "plain", "alone-accumulated", "plain-accumulated"),
    *("failing-gradient", "failing-forward", "dense"),
    *(f"without-{what}" for what in CONTROLS),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded") / "run"
    launch(path, "tests.sharded.training", *MODES)
    return path


def findings(out: Path, mode: str) -> list[dict[str, Any]]:
    return [pickle.loads(Path(f"{out}.{mode}.{rank}").read_bytes()) for rank in range(2)]


def disturbed(out: Path, mode: str, alone: str = "alone") -> list[list[str]]:
    pairs = zip(findings(out, mode), findings(out, alone), strict=True)
    return [differences(ours["state"], theirs["state"]) for ours, theirs in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", ["", "-accumulated"])
def test_training_is_bitwise_the_same(out: Path, accumulated: str) -> None:
    assert disturbed(out, f"plain{accumulated}", f"alone{accumulated}") == [[], []]
    for found in findings(out, f"plain{accumulated}"):
        assert len(found["histories"][0]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("what", CONTROLS)
def test_each_thing_that_is_put_back_has_to_be(out: Path, what: str) -> None:
    assert any(disturbed(out, f"without-{what}"))


@pytest.mark.slow
def test_every_process_has_the_same_history(out: Path) -> None:
    ours, theirs = (found["histories"][0] for found in findings(out, "plain"))
    assert [record["step"] for record in ours] == [0, 2, 4]
    assert ours[0]["num_samples"] == 8  # max_samples counts in total
    for key in ("step", "tolerance", "loss", "reference", "counts", "num_parameters"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("gradient", "ValueError on process 1: no gradient on this process"),
        ("forward", "ValueError on process 1: no forward pass on this process"),
    ],
)
def test_a_failure_on_one_process_ends_the_measurement_on_all(
    out: Path, where: str, text: str
) -> None:
    first, second = findings(out, f"failing-{where}")
    assert f"HessianRankMonitor: no rank was measured at step 2: {text}" in "".join(first["said"])
    for found in (first, second):
        assert [record["step"] for record in found["histories"][0]] == [0, 4]
        assert found["steps"] == 4
    assert disturbed(out, f"failing-{where}") == [[], []]


@pytest.mark.slow
def test_what_needs_a_copy_is_refused_and_training_goes_on(out: Path) -> None:
    first, _ = findings(out, "dense")
    assert first["histories"] == [[]]
    assert "no rank will be measured: method='dense' needs a whole copy" in "".join(first["said"])
    assert disturbed(out, "dense") == [[], []]


def test_refusals_say_what_to_ask_instead() -> None:
    with pytest.raises(UnsupportedStrategyError) as caught:
        check_settings(Settings(method="sketch"))
    assert str(caught.value) == (
        "method='sketch' needs a whole copy of the module, and ModelParallelStrategy leaves every "
        "process with a part of it; pass method='lanczos' (or 'auto', which is the same here)"
    )
    with pytest.raises(UnsupportedStrategyError, match=r"layers=True needs .* pass layers=False"):
        check_settings(Settings(layers=True))
    check_settings(Settings())
