"""Reference data: collected, cut, told apart, saved."""

from __future__ import annotations

import pytest
import torch
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
)
from lightning_hessrank.processes import Processes
from tests.batches import Slots, x


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
