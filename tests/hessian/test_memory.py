"""Running out of memory, not finite products, several processes."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.hessian.memory import free_memory, graph_bytes, is_out_of_memory


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:  # what the allocator of this torch really says
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_free_memory_is_that_of_the_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert 2**20 < free < 2**50
    held = torch.zeros(2**28, dtype=torch.uint8)
    assert free_memory(torch.device("cpu")) < free + 2**27
    del held


def test_graph_bytes_count_each_intermediate_result_once() -> None:
    w = torch.randn(7, 5, requires_grad=True)
    x = torch.randn(100, 5)
    y = (x @ w.T).tanh()
    # the product, its tanh, two sums; not the weight itself, nor a view of it
    assert graph_bytes((y.sum(), y.sum())) == 4 * (2 * 100 * 7 + 2)
    z = y.view(10, 10, 7).transpose(0, 1)[2:].expand(2, 8, 10, 7).unsqueeze(0).squeeze(0)
    assert graph_bytes((z,)) == 4 * 2 * 100 * 7
    assert graph_bytes((z.contiguous(),)) == 4 * (2 * 100 * 7 + z.numel())
