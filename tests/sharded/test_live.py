"""Live sharded modules in training: measured, undisturbed, and going on after failures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank import rank_bound
from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.monitor import sharding
from lightning_hessrank.monitor.bounds import Bounds
from lightning_hessrank.monitor.failures import Failures
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.monitor.sharding import Unsharded, check_settings
from lightning_hessrank.processes import Processes, UnsupportedStrategyError
from lightning_hessrank.results import BoundNotAvailableError
from tests.sharded import training
from tests.sharded.processes import findings, once
from tests.training import dataset, differences

#: What is put back, each with a control that leaves it out.
CONTROLS = ("shards", "state", "generators", "logging", "gradients", "frozen")
KINDS = ("", "-accumulated", "-autocast")
MODES = (
    *(f"{who}{kind}" for kind in KINDS for who in ("alone", "monitored")),
    "resumed",
    *("failing-gradient", "failing-forward", "dense"),
    *(f"without-{what}" for what in CONTROLS),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "sharded-training", MODES)


def disturbed(out: Path, mode: str, alone: str = "alone") -> list[list[str]]:
    pairs = zip(findings(out, mode), findings(out, alone), strict=True)
    return [differences(ours["state"], theirs["state"]) for ours, theirs in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same(out: Path, kind: str) -> None:
    assert disturbed(out, f"monitored{kind}", f"alone{kind}") == [[], []]
    for found in findings(out, f"monitored{kind}"):
        assert len(found["histories"][0]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("what", CONTROLS)
def test_each_thing_that_is_put_back_has_to_be(out: Path, what: str) -> None:
    assert any(disturbed(out, f"without-{what}"))


@pytest.mark.slow
def test_every_process_has_the_same_history(out: Path) -> None:
    ours, theirs = (found["histories"][0] for found in findings(out, "monitored"))
    assert [record["step"] for record in ours] == [0, 2, 4]
    assert ours[0]["num_samples"] == 8  # max_samples counts in total
    for key in ("step", "tolerance", "loss", "reference", "counts", "num_parameters"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]


@pytest.mark.slow
def test_a_run_that_goes_on_from_its_checkpoint_keeps_its_history_and_data(out: Path) -> None:
    (first, second), (whole, _) = (findings(out, mode) for mode in ("resumed", "monitored"))
    history, expected = first["histories"][0], whole["histories"][0]
    assert [record["step"] for record in history] == [0, 2, 4]
    assert repr(history[:2]) == repr(first["before"])  # with nan for ranks that are not told
    assert [x["loss"] for x in history[:2]] == [x["loss"] for x in expected[:2]]
    assert history[2]["num_parameters"] == expected[2]["num_parameters"]
    assert [x["loss"] for x in second["histories"][0]] == [x["loss"] for x in history]
    assert not any(
        "reference data differ" in text for found in (first, second) for text in found["said"]
    )


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


@pytest.mark.slow
def test_the_bound_is_that_of_the_whole_module(out: Path) -> None:
    """On the eight samples of both processes together."""
    net = training.Module().double().net.eval()
    samples = torch.stack([x for x, _ in dataset(8)]).double()
    expected = rank_bound(net, samples, loss="cross_entropy", data=samples)
    for found in findings(out, "monitored"):
        records = found["histories"][0]
        assert [record["bound"] for record in records] == [expected.total] * 3
        assert not any(record["bound_is_theorem"] for record in records)  # it has a tanh


class Linear(pl.LightningModule):
    """A linear network, with a penalty if one is asked for."""

    def __init__(self, penalty: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.penalty = penalty

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        return loss + self.penalty * self.net[0].weight.square().sum()


BATCHES = [(torch.randn(5, 4), torch.randn(5, 2))]


def test_a_copy_from_before_serves_once_and_has_the_bound() -> None:
    module = Linear()
    kept = Unsharded(module, None)
    with torch.no_grad():
        module.net[0].weight.zero_()  # what becomes of the live one is nothing to the copy
    with kept.subject(module, BATCHES, None) as subject:
        bound = reference_bound(subject)
    x = BATCHES[0][0]
    expected = rank_bound(Linear().net, x, data=x)
    assert (bound.total, bound.is_theorem) == (expected.total, True)
    with (
        pytest.raises(BoundNotAvailableError, match=r"before it was sharded has been used$"),
        kept.subject(module, BATCHES, None),
    ):
        pass


@pytest.mark.parametrize(
    ("kept", "batches", "text"),
    [
        (Unsharded, BATCHES, "and it was not seen before it was sharded"),
        (lambda: Unsharded(nn.Identity(), None), BATCHES, "made in configure_model, when they are"),
        (lambda: Unsharded(Linear(), None), None, "of all processes are too large together"),
    ],
)
def test_why_there_is_no_copy_is_said(kept: Any, batches: Any, text: str) -> None:
    with (
        pytest.raises(BoundNotAvailableError, match=f"^no process holds the whole .*{text}"),
        kept().subject(Linear(), batches, None),
    ):
        pass


def test_large_modules_are_not_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "MAX_UNSHARDED", 22)
    with (
        pytest.raises(BoundNotAvailableError, match=r"of 23 parameters \(a copy is kept of 22 at"),
        Unsharded(Linear(), None).subject(Linear(), BATCHES, None),
    ):
        pass


def test_a_module_that_cannot_be_copied_is_trained_all_the_same() -> None:
    class Stubborn(Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one of me")

    with (
        pytest.raises(BoundNotAvailableError, match=r"could not be copied before .*only one of me"),
        Unsharded(Stubborn(), None).subject(Linear(), BATCHES, None),
    ):
        pass


def test_frozen_since_is_another_function() -> None:
    module = Linear()
    kept = Unsharded(module, None)
    module.net[0].requires_grad_(False)
    with (
        pytest.raises(BoundNotAvailableError, match="other trainable parameters than before"),
        kept.subject(module, BATCHES, None),
    ):
        pass


@pytest.mark.parametrize(
    ("penalty", "missing"),
    [
        (0.0, ""),
        (0.1, "the rank is logged without a bound: the loss has a part that does not pass"),
    ],
)
def test_a_penalty_that_the_bound_does_not_know_of_leaves_none(
    penalty: float, missing: str
) -> None:
    module = Linear(penalty)
    series: Any = SimpleNamespace(bound=None, bound_sought=False)
    bounds = Bounds(series, Failures("warn"))
    union = partial(Unsharded(module, None).subject, module, BATCHES, None)
    bounds.seek_together(union, Processes(), None)
    assert series.bound_sought
    assert (series.bound is None) is bool(penalty)
    assert bounds.missing.startswith(missing)
    assert bool(bounds.missing) is bool(missing)
