"""Whatever a step changes is put back after it: each evaluation gives the same, the live nothing.

Every row changes another kind of state, and its value depends on it. The control takes the putting
back away, and every row must notice.
"""

from __future__ import annotations

import collections
import functools
import itertools
import random
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.state import State


@dataclass
class Counter:
    calls: int = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


@dataclass
class Nested:
    inside: dict[str, list[Counter]] = field(default_factory=lambda: {"a": [Counter()]})


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


@dataclass(frozen=True)
class Frozen:
    calls: int = 0


def in_place(x: Tensor, by: float = 1.0) -> float:
    with torch.no_grad():
        x.add_(by)
    return float(x.detach().sum())


def averaged(target: nn.Parameter) -> float:
    target.data = target.data * 0.9 + 0.1
    return float(target)


def grown(container: Any) -> int:
    container.append(1)
    return len(container)


def counted(container: Any) -> int:
    container["calls"] = container.get("calls", 0) + 1
    return int(container["calls"])


def slotted(x: Slotted) -> int:
    x.calls += 1
    return x.calls


def thawed(x: Frozen) -> int:
    object.__setattr__(x, "calls", x.calls + 1)
    return x.calls


def queued(x: collections.deque[Tensor]) -> float:
    x.append(x[-1] + 1)
    return float(torch.stack(tuple(x)).mean())


def closure() -> Callable[[], int]:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


def default() -> Callable[[], int]:
    def count(seen: list[int] = []) -> int:  # noqa: B006 - that is the point
        return grown(seen)

    return count


def marked() -> Callable[[], int]:
    seen: list[int] = []

    def count() -> int:
        vars(count)["calls"] = vars(count).get("calls", 0) + 1
        return int(vars(count)["calls"]) + len(seen)

    return count


def weakly_keyed(module: Any) -> Any:
    module.key = nn.Identity()
    return weakref.WeakKeyDictionary({module.key: Counter()})


def array(x: np.ndarray[Any, Any]) -> float:
    x += 1
    return float(x.sum())


KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], float]]] = {
    "frozen parameter": (lambda m: nn.Parameter(torch.zeros(2), requires_grad=False), in_place),
    "frozen parameter, its data": (
        lambda m: nn.Parameter(torch.zeros(()), requires_grad=False),
        averaged,
    ),
    "buffer": (lambda m: nn.Buffer(torch.zeros(2)), in_place),
    "tensor": (lambda m: torch.zeros(2), in_place),
    "tensor in a list": (lambda m: [torch.zeros(2)], lambda x: in_place(x[0])),
    "tensor in a tuple in a dict": (
        lambda m: {"a": (1, torch.zeros(2))},
        lambda x: in_place(x["a"][1]),
    ),
    "list": (lambda m: [], grown),
    "deque": (lambda m: collections.deque([torch.zeros(())], maxlen=3), queued),
    "dict": (lambda m: {}, counted),
    "defaultdict": (lambda m: collections.defaultdict(int), counted),
    "OrderedDict": (lambda m: collections.OrderedDict(a=1), counted),
    "Counter": (lambda m: collections.Counter("abca"), counted),
    "set": (lambda m: {0}, lambda x: (x.add(len(x)), len(x))[1]),
    "object": (lambda m: Counter(), lambda x: x()),
    "nested objects": (lambda m: Nested(), lambda x: x.inside["a"][0]()),
    "object with slots": (lambda m: Slotted(), slotted),
    "frozen dataclass": (lambda m: Frozen(), thawed),
    "array": (lambda m: np.zeros(2), array),
    "closure": (lambda m: closure(), lambda x: x()),
    "default argument": (lambda m: default(), lambda x: x()),
    "function's attribute": (lambda m: marked(), lambda x: x()),
    "bound method": (lambda m: Counter().__call__, lambda x: x()),
    "partial": (lambda m: functools.partial(grown, []), lambda x: x()),
    "iterator": (lambda m: itertools.count(1), next),
    "weak keys": (weakly_keyed, lambda x: next(iter(x.values()))()),
    "torch generator": (lambda m: torch.Generator(), lambda x: float(torch.rand((), generator=x))),
    "numpy generator": (lambda m: np.random.default_rng(0), lambda x: x.random()),
    "numpy random state": (lambda m: np.random.RandomState(0), lambda x: x.rand()),
    "python generator": (lambda m: random.Random(0), lambda x: x.random()),
}


class Stateful(nn.Module):
    def __init__(self, build: Callable[[Any], Any], use: Callable[[Any], float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.held, self.use = build(self), use

    def forward(self) -> Tensor:
        return self.weight * self.use(self.held)


@pytest.mark.parametrize(("build", "use"), KINDS.values(), ids=KINDS.keys())
def test_each_run_gives_the_same_and_the_live_module_is_as_it_was(build: Any, use: Any) -> None:
    twin, live = Stateful(build, use), Stateful(build, use)
    copy = IsolatedModule(live)
    values = [copy.run(lambda module: module().item()) for _ in range(3)]
    first = twin().item()
    assert values == [values[0]] * 3
    if not isinstance(twin.held, torch.Generator):  # draws other numbers in float64
        assert values[0] == pytest.approx(first, abs=1e-6)
    assert live().item() == first


@pytest.mark.parametrize(("build", "use"), KINDS.values(), ids=KINDS.keys())
def test_without_putting_back_each_row_would_notice(
    build: Any, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(State, "rewound", lambda state: nullcontext())
    copy = IsolatedModule(Stateful(build, use))
    assert len({copy.run(lambda module: module().item()) for _ in range(3)}) == 3


def test_a_graph_keeps_the_state_that_it_was_computed_from() -> None:
    """State is exchanged for clones: what is put back must not reach into a retained graph."""
    module = Stateful(lambda m: nn.Parameter(torch.ones(()), requires_grad=False), lambda x: 1.0)
    module.use = lambda x: in_place(x) * 0 + x  # type: ignore[assignment,return-value]
    copy = IsolatedModule(module)
    losses = [copy.run(lambda m: m()) for _ in range(2)]
    (weight,) = copy.parameters.values()
    assert [float(torch.autograd.grad(x, weight)[0]) for x in losses] == [2.0, 2.0]


def test_one_tensor_in_two_places_stays_one() -> None:
    module = Stateful(lambda m: [torch.zeros(())] * 2, lambda x: in_place(x[0]) + float(x[1]))
    module.other = module.held[0]
    copy = IsolatedModule(module)
    assert copy.run(lambda m: m().item()) == 2.0
    assert copy.run(lambda m: m.held[1] is m.other)


def test_the_copy_of_a_sparse_tensor_is_sparse() -> None:
    size = 10_000_000
    large = torch.sparse_coo_tensor(
        [[0, 9], [0, 9]], [1.0, 1.0], (size, size), check_invariants=True
    )
    module = Stateful(lambda m: large, lambda x: torch.sparse.sum(x).item())
    copy = IsolatedModule(module)
    assert copy.run(lambda m: m().item()) == 2.0
    assert copy.shadow.held.dtype == torch.float64
