"""Whatever precision a step asks for, it computes in the measuring one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_hessrank.subject.precision import KeepPrecision, PrecisionError

X = torch.linspace(0.1, 1.1, 6, dtype=torch.float64).reshape(2, 3)
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    ".float()": lambda x: x.float() / 3,
    ".half()": lambda x: x.half() / 3,
    ".to(dtype)": lambda x: x.to(torch.bfloat16) / 3,
    ".to(dtype=)": lambda x: x.to(dtype=torch.float32) / 3,
    ".type(name)": lambda x: x.type("torch.FloatTensor") / 3,
    ".type(dtype)": lambda x: x.type(torch.float16) / 3,
    ".type_as": lambda x: x.type_as(torch.zeros(1)) / 3,
    "constant": lambda x: F.linear(x, torch.eye(3, dtype=torch.float32)) / 3,
    "constant made here": lambda x: x / torch.tensor(3.0, dtype=torch.float32),
    "softmax in float": lambda x: x.softmax(-1, dtype=torch.float32),
    "concatenated": lambda x: torch.cat([x, torch.zeros(2, 1, dtype=torch.float16)], 1) / 3,
    "ones_like": lambda x: torch.ones_like(x, dtype=torch.float32) * x / 3,
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_stay_in_double_precision(name: str) -> None:
    step = STEPS[name]
    with KeepPrecision(torch.float64):
        found = step(X)
    assert found.dtype == torch.float64
    plain = {"softmax in float": X.softmax(-1)}
    plain["concatenated"] = torch.cat([X, torch.zeros(2, 1, dtype=torch.float64)], 1) / 3
    torch.testing.assert_close(found, plain.get(name, X / 3), rtol=1e-15, atol=0)


def test_autocast_is_off_inside() -> None:
    with KeepPrecision(torch.float64), torch.autocast("cpu", torch.bfloat16):
        assert (X.float() @ X.float().T).dtype == torch.float64


def test_integers_and_bits_keep_their_types() -> None:
    with KeepPrecision(torch.float64):
        assert X.long().dtype == torch.int64
        assert torch.arange(3).dtype == torch.int64
        assert torch.equal(X.view(torch.int64).view(torch.float64), X)
        assert X.view(torch.float32).shape == (2, 6)


def test_a_tensor_is_written_to_in_place() -> None:
    written = torch.zeros(3)
    with KeepPrecision(torch.float64):
        written.add_(1)
    assert torch.equal(written, torch.ones(3))


def test_a_lower_precision_that_comes_out_all_the_same_is_refused() -> None:
    with (
        KeepPrecision(torch.float64),
        pytest.raises(PrecisionError, match=r"turns torch.float64 into torch.float32.*loss_fn="),
    ):
        lowers(X)


def lowers(x: Tensor) -> Tensor:
    """A function that modes see as one, and that comes back in single precision."""
    if torch.overrides.has_torch_function((x,)):
        return torch.overrides.handle_torch_function(lowers, (x,), x)
    return x.to(torch.float32)
