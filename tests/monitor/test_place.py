"""What a measurement learns of the optimiser, from live trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor.place import Place
from tests.oracles import dense_hessian
from tests.training import QUIET, TRAINS, loader, plain_module

pytestmark = TRAINS

Make = Callable[[Iterable[Tensor]], Any]
EDGE = {"sharpness", "beyond_edge"}


def fit(make: Make) -> tuple[pl.Trainer, HessianRankMonitor]:
    module = plain_module(pl)
    module.configure_optimizers = lambda: make(module.parameters())
    monitor = HessianRankMonitor(method="dense", data=loader(), on_error="raise")
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, "callbacks": [monitor]})
    trainer.fit(module, loader())
    return trainer, monitor


def test_gradient_descent_has_an_edge_of_stability() -> None:
    trainer, monitor = fit(lambda ps: SGD(ps, lr=0.5, weight_decay=1e-2))
    assert Place.of(trainer, 0).optimiser() == (1e-2, 0.5)
    net, pairs = trainer.lightning_module.net.double(), [(x.double(), y) for x, y in loader()]
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(net, nn.functional.cross_entropy, pairs))
    measures = monitor.history[-1]["measures"]
    assert measures["sharpness"] == pytest.approx(float(eigenvalues.max()) * 0.5 / 2)
    assert measures["beyond_edge"] == int((eigenvalues.abs() > 2 / 0.5).sum())
    size = eigenvalues.abs()
    wanted = float((size / (size + 1e-2)).sum())
    assert measures["effective_dimension"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (lambda ps: SGD(ps, lr=0.5, momentum=0.9), None),
        (lambda ps: Adam(ps, lr=0.01), None),
        (lambda ps: AdamW(ps, lr=0.01, weight_decay=0.1), 0.1),
    ],
    ids=["momentum", "Adam", "AdamW"],
)
def test_others_have_none(make: Make, decay: float | None) -> None:
    trainer, monitor = fit(make)
    assert Place.of(trainer, 0).optimiser() == (decay, None)
    measures = set(monitor.history[-1]["measures"])
    assert not measures & EDGE
    assert ("effective_dimension" in measures) is (decay is not None)


def groups(*changes: dict[str, Any]) -> Optimizer:
    weights = [nn.Parameter(torch.ones(2)) for _ in changes]
    own = [{"params": [x], **change} for x, change in zip(weights, changes, strict=True)]
    return SGD(own, lr=0.1, weight_decay=0.2)


@pytest.mark.parametrize(
    ("optimizers", "wanted"),
    [
        ([groups({}), groups({})], (None, None)),
        ([groups({}, {"lr": 0.3})], (0.2, None)),
        ([groups({}, {"weight_decay": 0.0})], (None, 0.1)),
        ([groups({"lr": torch.tensor(0.25)})], (0.2, 0.25)),
        ([groups({"lr": 0.0})], (0.2, None)),
        ([object()], (None, None)),
        ([SimpleNamespace(param_groups=[{"weight_decay": "none"}])], (None, None)),
        ([], (None, None)),
        (None, (None, None)),
    ],
)
def test_what_is_not_one_number_is_unknown(optimizers: Any, wanted: tuple[Any, Any]) -> None:
    assert Place(0, 0, SimpleNamespace(optimizers=optimizers)).optimiser() == wanted


@pytest.mark.parametrize("place", [Place(0, 0), Place.at_checkpoint(3, 1)], ids=["none", "file"])
def test_without_a_trainer_all_is_unknown(place: Place) -> None:
    assert place.optimiser() == (None, None)
