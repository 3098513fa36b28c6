"""Vectors that are sharded like the parameters of a live module.

An entry of a parameter may be stored by several processes (tensor parallel peers of a layer that
is not split, replicas of hybrid sharding). A vector ``x`` is kept as ``x / √m`` on each of the
``m`` processes that store its entry, so that the plain sum over processes of local inner products
is the inner product, and the Hessian is seen through an isometry: with the same eigenvalues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_hessrank.hessian.rows import Rows
from lightning_hessrank.processes import Processes


@dataclass(frozen=True)
class Shard:
    """What this process stores of a parameter."""

    name: str
    parameter: Tensor
    copies: int
    """Processes that store the same entries."""
    number: int
    """Of the shard within the parameter; the same for all processes that store these entries."""

    @property
    def local(self) -> Tensor:
        """The stored entries themselves; what is written here is what is gathered."""
        return local_part(self.parameter.detach())


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process stores of a tensor: all of it, if it is not sharded."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_of(name: str, parameter: Tensor, num_processes: int) -> Shard:
    """Read from its mesh and placements which share of a parameter is stored here.

    Args:
        name: of the parameter.
        parameter: a ``DTensor``, or a tensor that every process has.
        num_processes: in all.
    """
    if not isinstance(parameter, DTensor):
        return Shard(name, parameter, num_processes, 0)
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    copies, number = num_processes // mesh.size(), 0
    for i, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            copies *= mesh.size(i)
        else:
            number = number * mesh.size(i) + coordinate[i]
    return Shard(name, parameter, copies, number)


class ShardedRows(Rows):
    """Rows of vectors, one for each stored entry of the trainable parameters, in their order.

    Args:
        module: live and sharded.
        processes: that hold it.

    Raises:
        ValueError: no parameter is trainable.
        TypeError: a trainable one is complex.
    """

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                f"{type(module).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some, or remove the monitor"
            )
        for name, parameter in named:
            if parameter.is_complex():
                raise TypeError(
                    f"parameter {name} is complex: the Hessian is that of real parameters; store "
                    "real and imaginary part and join them with torch.view_as_complex"
                )
        self.shards = [shard_of(name, p, processes.count) for name, p in named]
        self.sizes = [shard.local.numel() for shard in self.shards]
        self.dim = sum(p.numel() for _, p in named)
        self._processes = processes
        super().__init__(sum(self.sizes))
        self.most = max(processes.gather(self.count))

    @property
    def device(self) -> torch.device:
        """Of the stored entries."""
        return self.shards[0].local.device

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return self._processes.sum(values)

    def norms(self, block: Tensor) -> Tensor:
        """Euclidean norms of the columns of a block."""
        return self.sum((block * block).sum(dim=0)).sqrt()

    def qr(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """QR factors of a tall matrix, a row block on each process.

        The factors ``R`` of all row blocks, one upon the other, are factorised by every process
        (TSQR: Demmel, Grigori, Hoemmen, Langou, SIAM J. Sci. Comput. 34, 2012).
        """
        processes, k = self._processes, block.shape[1]
        q, r = torch.linalg.qr(block)
        stacked = block.new_zeros(processes.count, k, k)
        stacked[processes.rank, : len(r)] = r
        outer, whole = torch.linalg.qr(self.sum(stacked).flatten(0, 1))
        mine = outer.unflatten(0, (processes.count, k))[processes.rank]
        return q @ mine[: len(r)], whole

    def anyone(self, flag: bool) -> bool:
        """Whether a flag is raised on any process."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)))

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Make a vector, float64, of one tensor for each shard."""
        pieces = [
            tensor.to(torch.float64).flatten() / shard.copies**0.5
            for tensor, shard in zip(tensors, self.shards, strict=True)
        ]
        return torch.cat(pieces)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the piece of a vector that belongs to each shard, in its shape."""
        return [
            piece.view(shard.local.shape) * shard.copies**0.5
            for piece, shard in zip(vector.split(self.sizes), self.shards, strict=True)
        ]


class ShardProbes:
    """Standard normal vectors, drawn shard by shard; stored copies of an entry get the same number.

    Args:
        rows: where their entries are.
        seed: of all.
    """

    def __init__(self, rows: ShardedRows, seed: int) -> None:
        self._rows, self._seed = rows, seed

    def columns(self, start: int, stop: int) -> Tensor:
        """Return the rows held here of columns ``start:stop``; float64."""
        columns = [self._rows.join(self._column(i)) for i in range(start, stop)]
        return torch.stack(columns, dim=1)

    def _column(self, index: int) -> list[Tensor]:
        drawn = []
        for i, (shard, size) in enumerate(zip(self._rows.shards, self._rows.sizes, strict=True)):
            seed = self._seed
            for number in (index, i, shard.number):
                seed = (seed * 1_000_003 + number) % 2**63
            generator = torch.Generator(self._rows.device).manual_seed(seed)
            options = {"dtype": torch.float64, "device": self._rows.device}
            drawn.append(torch.randn(size, generator=generator, **options))  # type: ignore[call-overload]
        return drawn
