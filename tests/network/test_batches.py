"""Batches of any structure: copied, counted and cut without touching the user's objects."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank.monitor.reference import (
    ReferenceData,
    as_batches,
    collect,
    fingerprint,
    share,
)
from lightning_hessrank.network.batches import (
    batch_size,
    cast_batch,
    clone_batch,
    cut_batch,
    list_tensors,
)
from lightning_hessrank.processes import Processes

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: list[str]


class Slots:
    __slots__ = ("note", "x")

    def __init__(self, x: Tensor) -> None:
        self.x, self.note = x, "text"


class Node:
    """An object that knows itself."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.me = x, self


def x() -> Tensor:
    return torch.arange(8.0).reshape(4, 2)


BATCHES: list[Any] = [
    x(),
    (x(), torch.arange(4)),
    [x(), {"a": [x()], "b": None}],
    UserDict({"x": x(), "names": list("abcd")}),
    Pair(x(), torch.arange(4)),
    Frozen(x(), list("abcd")),
    Slots(x()),
    Node(x()),
    (x(), Slots(x())),
    [torch.ones(3, 5), torch.zeros(3, 5)],
]


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


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="have no batches; pass data="):
        collect([], 5)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(None, [4, 4, 2]), (6, [4, 2]), (4, [4]), (99, [4, 4, 2])]
)
def test_samples_are_collected_up_to_the_limit(limit: int | None, sizes: list[int]) -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 3)), batch_size=4)
    assert [batch_size(batch) for batch in collect(loader, limit)] == sizes


def test_a_shuffling_loader_gives_the_same_samples_for_the_same_seed() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 3)), batch_size=4, shuffle=True)

    def drawn(seed: int) -> str:
        return fingerprint(collect(as_batches(loader, lambda batch: batch), 6, seed=seed))

    state = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_fingerprints_tell_content_type_and_order_apart() -> None:
    batches = [
        [x()],
        [x() + 1e-6],
        [x().double()],
        [x().flatten()],
        [x().to_sparse()],
        [x().bfloat16()],
        [torch.arange(4), x()],
        [x(), torch.arange(4)],
    ]
    assert len({fingerprint(batch) for batch in batches}) == len(batches)
    assert fingerprint([x().T.contiguous().T]) == fingerprint([x()])


def test_reference_data_are_saved_up_to_a_limit_and_as_plain_types_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ReferenceData.gather([(x(), torch.arange(4))], Processes())
    again = ReferenceData.load(plain.state_dict(), Processes())
    assert again is not None
    assert again.fingerprint == plain.fingerprint
    assert again.num_samples == 4
    assert set(ReferenceData.gather([Slots(x())], Processes()).state_dict()) == {
        "fingerprint",
        "num_samples",
    }
    monkeypatch.setattr("lightning_hessrank.monitor.reference.MAX_SAVED_BYTES", 10)
    assert ReferenceData.load(plain.state_dict(), Processes()) is None


@pytest.mark.parametrize(("limit", "count"), [(10, 1), (10, 3), (7, 2), (2, 3)])
def test_shares_add_up(limit: int, count: int) -> None:
    shares = [share(limit, Processes(rank, count)) for rank in range(count)]
    assert sum(shares) == max(limit, count)
    assert max(shares) - min(shares) <= 1
