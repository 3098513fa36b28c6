"""The processes of a run: what they sum, what they decide together, and how one failure ends all.

Every exchange is preceded by a flag: "I am well". A process that fails between two exchanges raises
its flag in place of the next one, so the others meet the failure there instead of waiting for
values that never come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")

_SHARDED = (
    "FSDPStrategy",
    "DeepSpeedStrategy",
    "XLAFSDPStrategy",
    "MegatronStrategy",
)
#: Shards the module in a way in which it can be measured live (FSDP2, tensor parallelism).
_LIVE = "ModelParallelStrategy"
_REPLICATED = ("SingleDeviceStrategy", "DDPStrategy")


class UnsupportedStrategyError(RuntimeError):
    """The strategy does not give every process a whole copy of the module."""


class ProcessFailedError(Exception):
    """One of several processes failed, so that none can go on; raised alike on all of them.

    Args:
        failures: number of process -> name of the error's class, and its text.
    """

    def __init__(self, failures: dict[int, tuple[str, str]]) -> None:
        listed = (f"{kind} on process {i}: {text}" for i, (kind, text) in failures.items())
        super().__init__("; ".join(listed))
        self.kinds = frozenset(kind for kind, _ in failures.values())


class Processes:
    """The processes that measure together; by default this one alone.

    Args:
        rank: number of this process.
        count: how many there are, all in the default group of ``torch.distributed``.
        device: of the tensors that carry flags (NCCL takes none on the CPU).
    """

    sharded = False
    """Whether no process holds the whole module."""

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.count = count
        self._device = device

    @property
    def data(self) -> Processes:
        """Those among whom samples are divided: all, unless some compute on the same ones."""
        return self

    @classmethod
    def of(cls, trainer: Any) -> Processes:
        """Return the processes of a Lightning trainer.

        Raises:
            UnsupportedStrategyError: the strategy shards the module, or is not known.
        """
        strategy = trainer.strategy
        check_strategy(strategy, trainer.world_size)
        where = trainer.global_rank, trainer.world_size, strategy.root_device
        if not is_live(strategy):
            return cls(*where)
        mesh = strategy.device_mesh["data_parallel"]
        return ShardingProcesses(*where, data=(mesh.get_local_rank(), mesh.size()))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes.

        Raises:
            ProcessFailedError: another process has failed.
        """
        if self.count == 1:
            return values
        self._meet(None)
        total = values.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    def gather(self, value: _T) -> list[_T]:
        """Return every process's ``value``, which can be any object that pickles.

        Raises:
            ProcessFailedError: another process has failed.
        """
        if self.count == 1:
            return [value]
        self._meet(None)
        return self._gather(value)

    def first(self, value: _T) -> _T:
        """Return the value of the first process, for decisions that all must take alike."""
        return self.gather(value)[0]

    def meet(self) -> None:
        """Go on if all are well; to be called by all, before what cannot be left half-way.

        Raises:
            ProcessFailedError: another process has failed.
        """
        if self.count > 1:
            self._meet(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave with an exception on every process if there was one on any. Not to be nested.

        Raises:
            ProcessFailedError: there was one; with a single process, the exception itself.
        """
        try:
            yield
        except ProcessFailedError:
            raise  # met at an exchange: all know
        except Exception as error:
            if self.count == 1:
                raise
            self._meet(error)
        else:
            if self.count > 1:
                self._meet(None)

    def _meet(self, error: Exception | None) -> None:
        """Exchange flags, and what went wrong where one is raised."""
        flag = torch.tensor([float(error is not None)], device=self._device)
        dist.all_reduce(flag)
        if not bool(flag):
            return
        texts = self._gather(None if error is None else (type(error).__name__, str(error)))
        failures = {i: text for i, text in enumerate(texts) if text is not None}
        raise ProcessFailedError(failures) from error

    def _gather(self, value: _T) -> list[_T]:
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered


class ShardingProcesses(Processes):
    """Processes none of which holds the whole module.

    Args:
        rank: number of this process.
        count: how many there are.
        device: of the tensors that carry flags.
        data: number of this process's share of the data, and how many shares there are: tensor
            parallel peers have the same one.
    """

    sharded = True

    def __init__(
        self, rank: int, count: int, device: torch.device | None = None, *, data: tuple[int, int]
    ) -> None:
        super().__init__(rank, count, device)
        self._data = _DataGroups(self, *data)

    @property
    def data(self) -> Processes:
        """One for each share of the data."""
        return self._data


class _DataGroups(Processes):
    """Groups of processes with the same data, each of which speaks with one voice."""

    def __init__(self, processes: Processes, rank: int, count: int) -> None:
        super().__init__(rank, count)
        self._processes = processes

    def gather(self, value: _T) -> list[_T]:
        """Return one value of each group, its first process's."""
        found: dict[int, _T] = {}
        for number, each in self._processes.gather((self.rank, value)):
            found.setdefault(number, each)
        return [found[number] for number in sorted(found)]


def is_live(strategy: Any) -> bool:
    """Whether a strategy shards the module so that it is measured live, shard by shard."""
    return any(base.__name__ == _LIVE for base in type(strategy).__mro__)


def check_strategy(strategy: Any, num_processes: int) -> None:
    """Raise unless every process has a whole copy of the module, or shards that can be measured.

    Told by the names of its classes, since there are two namespaces and optional packages, and
    sharded ones first, since some of them descend from DDP.

    Raises:
        UnsupportedStrategyError: names the strategy, and what to do.
    """
    names = [base.__name__ for base in type(strategy).__mro__]
    sharded = [name for name in names if name in _SHARDED]
    remedy = (
        "train with strategy='ddp' or on one device, or measure a checkpoint afterwards with "
        "lightning_hessrank.hessian_rank(...)"
    )
    if sharded:
        raise UnsupportedStrategyError(
            f"{sharded[0]} splits the module over processes or devices, so that there is no whole "
            f"copy whose Hessian could be measured during training; {remedy}"
        )
    known = (*_REPLICATED, _LIVE)
    if num_processes > 1 and not any(name in known for name in names):
        raise UnsupportedStrategyError(
            f"{names[0]} is not known to give every process a whole copy of the module; {remedy}"
        )
