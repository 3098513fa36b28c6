"""Threads: small matrices get one, large ones all, and the process keeps what it had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lightning_hessrank import hessian_rank
from lightning_hessrank.threads import WORTH_THREADS, threads_for


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("size", "threads"), [(WORTH_THREADS - 1, 1), (WORTH_THREADS, 2)])
def test_small_matrices_get_one_thread(size: int, threads: int) -> None:
    with threads_for(size):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_given_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="out"), threads_for(3):
        raise ValueError("out")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("method", ["dense", "sketch", "lanczos"])
def test_every_estimator_heeds_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("eigvalsh", "eigh"):
        solve = getattr(torch.linalg, name)

        def watched(matrix: torch.Tensor, solve: object = solve) -> object:
            if matrix.ndim == 2:  # not the small ones of every sample
                seen.append(torch.get_num_threads())
            return solve(matrix)  # type: ignore[operator]

        monkeypatch.setattr(torch.linalg, name, watched)
    data = torch.randn(8, 3), torch.randn(8, 2)
    hessian_rank(torch.nn.Linear(3, 2), "mse", data, method=method, rtol=1e-2)
    assert seen
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
