"""Batches of any structure: copied, counted and cut without touching the user's objects."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from lightning_hessrank.monitor.reference import (
    collect,
)
from lightning_hessrank.network.batches import (
    batch_size,
    cast_batch,
    clone_batch,
    cut_batch,
    list_tensors,
)
from tests.batches import BATCHES, Frozen, x


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_a_clone_shares_nothing_that_can_be_written_to(batch: Any) -> None:
    clone = clone_batch(batch)
    assert type(clone) is type(batch)
    originals, copies = list_tensors(batch), list_tensors(clone)
    before = [tensor.clone() for tensor in originals]
    for tensor in copies:
        tensor.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(originals, before, strict=True))
    assert len(copies) == len(originals) > 0


@pytest.mark.parametrize("batch", BATCHES[:6], ids=lambda batch: type(batch).__name__)
def test_a_cut_keeps_the_first_samples_of_everything(batch: Any) -> None:
    cut = cut_batch(batch, 3)
    assert type(cut) is type(batch)
    assert batch_size(cut) == 3
    for short, full in zip(list_tensors(cut), list_tensors(batch), strict=True):
        assert torch.equal(short, full[:3])
    assert cut_batch(batch, 4) is batch
    assert batch_size(batch) == 4
    if isinstance(batch, Frozen):
        assert cut.y == ["a", "b", "c"]


@pytest.mark.parametrize(
    "batch",
    [
        {"class_weights": torch.ones(3), "x": x(), "y": torch.arange(4)},
        (torch.ones(3), x(), torch.arange(4)),
        (x(), [{"boxes": torch.ones(2, 4), "labels": torch.ones(2)} for _ in range(4)]),
        (x(), torch.ones(3)),  # one each: the first
    ],
    ids=["mapping", "tuple", "detection", "tie"],
)
def test_the_number_of_samples_is_that_of_most_tensors(batch: Any) -> None:
    assert batch_size(batch) == 4


def test_a_cut_leaves_what_is_not_per_sample() -> None:
    weights = torch.ones(3)
    cut = cut_batch({"class_weights": weights, "x": x(), "y": torch.arange(4)}, 2)
    assert cut["class_weights"] is weights
    assert torch.equal(cut["x"], x()[:2])
    assert torch.equal(cut["y"], torch.arange(2))


def test_a_tensor_that_occurs_twice_occurs_twice_in_the_copy() -> None:
    shared = x()
    first, second = clone_batch([shared, (shared,)])
    assert first is second[0]
    assert first is not shared


def test_floating_tensors_are_cast_and_integers_kept() -> None:
    cast = cast_batch((x(), torch.arange(4), x() > 1), torch.float64, torch.device("cpu"))
    assert [tensor.dtype for tensor in cast] == [torch.float64, torch.int64, torch.bool]


def test_modules_in_a_batch_are_shared() -> None:
    module = nn.Linear(2, 2)
    assert clone_batch((x(), module))[1] is module


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            ["a"],
            "no tensor with a batch dimension in the reference batch (a list); pass data=... with "
            "tensors of shape (samples, ...)",
        ),
        (
            torch.zeros(0, 2),
            "the reference batch is empty; pass data=... with at least one sample",
        ),
    ],
)
def test_batches_without_samples_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match="reference batch") as caught:
        collect([batch], 5)
    assert str(caught.value) == message


class Guarded(OrderedDict[str, Any]):
    """Takes items, but forbids ``update`` (as the outputs of transformers do)."""

    def update(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        raise TypeError("you cannot use update")


def _guarded(items: dict[str, Any]) -> Guarded:
    made = Guarded()
    for key, value in items.items():
        made[key] = value
    return made


@pytest.mark.parametrize(
    "make",
    [_guarded, UserDict, MappingProxyType, lambda x: defaultdict(list, x)],
    ids=["without update", "UserDict", "read-only", "defaultdict"],
)
def test_mappings_of_any_kind_are_copied_and_cut(make: Callable[[Any], Any]) -> None:
    batch = make({"x": torch.arange(6.0).reshape(3, 2), "names": "abc"})
    copied, cut = clone_batch(batch), cut_batch(batch, 2)
    assert type(copied) is type(cut) is type(batch)
    assert list(copied) == list(cut) == ["x", "names"]
    assert torch.equal(copied["x"], batch["x"])
    assert copied["x"].data_ptr() != batch["x"].data_ptr()
    assert torch.equal(cut["x"], batch["x"][:2])
    assert batch["x"].shape == (3, 2)
