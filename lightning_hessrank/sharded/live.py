"""Gradients of a live sharded module, and everything put back afterwards.

Two designs were weighed. (a) A shadow sharded like the live module, made from its configuration:
isolation for free, but ``fully_shard`` modules cannot be deep-copied, their construction is the
user's code (``configure_model``), and a second set of shards, hooks and process groups is held.
(b) The live module itself, whose shards are moved and whose state is noted and put back bitwise:
nothing is rebuilt, and what is measured is what trains, precision and communication included. (b)
is used; each thing that is put back has a control that leaves it out.

Two ways to a product were weighed, too: a second backward pass through the live module (FSDP
computes with gathered parameters that are freed between the passes, so that a graph of the gradient
does not reach its shards), and central differences of gradients, which ask nothing of the strategy
that training does not. Differences are used; what they resolve is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import batch_size, cast_batch, list_tensors, map_tensors
from lightning_hessrank.processes import Processes
from lightning_hessrank.sharded.fsdp import Units
from lightning_hessrank.sharded.shards import ShardedRows, local_part
from lightning_hessrank.subject.duplicate import MODULE_INTERNALS
from lightning_hessrank.subject.isolated import set_mode
from lightning_hessrank.subject.isolation import frozen_rng, own_figures, undisturbed
from lightning_hessrank.subject.state import State
from lightning_hessrank.subject.step import Step
from lightning_hessrank.subject.trainer_view import TrainerView, detach_from_trainer

#: What modules keep that FSDP itself sets up at the first forward pass, and swaps while it runs.
_STRATEGYS = MODULE_INTERNALS - {"training", "_buffers", "_modules"}


class LiveModule:
    """The mean loss of a live sharded module as a function of its shards.

    Every process must ask for the same gradients in the same order.

    Args:
        module: live; of each trainable parameter this process may hold a shard.
        batches: this process's share of the data, at least one.
        step: gives the loss of one batch.
        processes: that hold the module.
        training: mode to compute in; ``None``: the present one of every submodule.
        seed: of the randomness inside.
        trainer: a Lightning trainer that the step may read, and whose precision it computes in.

    Raises:
        ValueError: nothing is trainable, no data, or gradients that the strategy does not reduce.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        step: Step,
        processes: Processes,
        *,
        training: bool | None = False,
        seed: int = 0,
        trainer: Any = None,
    ) -> None:
        self.module, self.processes = module, processes
        self.rows = ShardedRows(module, processes)
        self.units = Units(module)
        self.units.check_reduced([(x.name, x.parameter) for x in self.rows.shards], processes)
        sizes = [batch_size(batch) for batch in batches]
        self.num_samples = sum(sum(x) for x in processes.data.gather(sizes))
        rounds = max(processes.gather(len(sizes)))  # as many passes on every process
        share = processes.data.count / self.num_samples  # the strategy takes the mean over shares
        self._terms = [(share * n, b) for n, b in zip(sizes, batches, strict=True)]
        self._terms += [(0.0, batches[-1])] * (rounds - len(sizes))
        self._step, self._training, self._seed, self._trainer = step, training, seed, trainer
        self._origin: list[Tensor] = []
        self._state: State | None = None
        self.num_gradients = 0

    @property
    def norm(self) -> float:
        """Norm of all trainable parameters."""
        return float(self.rows.norms(self.rows.join([x.local for x in self.rows.shards])[:, None]))

    @property
    def dtype(self) -> torch.dtype:
        """Coarsest type that is computed in: of parameters, of FSDP's policies, of autocast."""
        found = {x.parameter.dtype for x in self.rows.shards} | self.units.compute_dtypes()
        device = self.rows.device.type
        with self._precision():
            if torch.is_autocast_enabled(device):
                found.add(torch.get_autocast_dtype(device))
        return max(found, key=lambda x: torch.finfo(x).eps)

    @contextmanager
    def borrowed(self) -> Iterator[LiveModule]:
        """Take the module from training, and give it back bitwise as it was.

        Shards, gradients, buffers, attributes, modes, generators and the strategy's settings;
        optimisers, schedulers and scalers are not used at all.
        """
        parameters = [p for _, p in self.module.named_parameters()]
        gradients = [p.grad for p in parameters]
        frozen = [(p, local_part(p.detach()).clone()) for p in parameters if not p.requires_grad]
        with undisturbed(), self.units.borrowed():
            self._origin = [shard.local.clone() for shard in self.rows.shards]
            self._state = State(self.module, parameters, beyond=self._beyond())
            try:
                for parameter in parameters:
                    parameter.grad = None
                yield self
            finally:
                self.units.rest()
                self.put_back_shards()
                self._put_back_frozen(frozen)
                self._put_back_gradients(parameters, gradients)
                self._origin, self._state = [], None

    def gradient(self, displacement: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the gradient of the mean loss at displaced parameters, and that loss.

        Args:
            displacement: added to the parameters; a vector of ``rows``. ``None``: nothing.

        Returns:
            A vector of ``rows``, float64, and the mean loss over the data of all processes.

        Raises:
            ProcessFailedError: another process has failed.
            Exception: what the step raises.
        """
        self._displace(displacement)
        self.num_gradients += 1
        total, loss = None, 0.0
        for weight, batch in self._terms:
            loss += self._backward(weight, batch)
            found = self.rows.join([self._taken(x.parameter) for x in self.rows.shards])
            total = found if total is None else total.add_(found)
        assert total is not None
        share = torch.tensor([loss], dtype=torch.float64, device=self.rows.device)
        return total, float(self.rows.sum(share)) / self.processes.count

    def put_back_shards(self) -> None:
        """Write the parameters that training left, bit by bit."""
        for shard, content in zip(self.rows.shards, self._origin, strict=True):
            shard.local.copy_(content)

    def _put_back_frozen(self, contents: Sequence[tuple[Tensor, Tensor]]) -> None:
        for parameter, content in contents:
            local_part(parameter.detach()).copy_(content)

    def _put_back_gradients(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _displace(self, displacement: Tensor | None) -> None:
        self.units.rest()  # what is gathered next is what is written now
        if displacement is None:
            self.put_back_shards()
            return
        pieces = self.rows.split(displacement)
        for shard, content, piece in zip(self.rows.shards, self._origin, pieces, strict=True):
            shard.local.copy_(content.to(torch.float64) + piece)

    def _backward(self, weight: float, batch: Any) -> float:
        """Leave the gradient of a weighted loss in ``grad``; return that loss."""
        assert self._state is not None, "only while the module is borrowed"
        with ExitStack() as stack:
            stack.enter_context(frozen_rng(self._seed))
            stack.enter_context(own_figures())
            stack.enter_context(self._state.rewound())
            self._detach_from_trainer()
            if self._training is not None:
                set_mode(self.module, self._training)
            self.processes.meet()
            with self.units.serving(), self._precision():
                loss = weight * self._step(self.module, self._prepared(batch)).loss
            self.processes.meet()  # a pass backward cannot be left half-way
            loss.backward()
            return float(loss.detach())

    def _taken(self, parameter: Tensor) -> Tensor:
        """Take the gradient of this process's shard away; zeros where there is none."""
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return torch.zeros_like(local_part(parameter.detach()))
        placements = getattr(parameter, "placements", None)
        if placements is not None and gradient.placements != placements:  # type: ignore[attr-defined]
            gradient = gradient.redistribute(placements=placements)  # type: ignore[attr-defined]
        return local_part(gradient)

    def _prepared(self, batch: Any) -> Any:
        """Copy a batch (a step may change it), in the precision that training gives it."""
        tensors = list_tensors(batch)
        if any(x.device != self.rows.device for x in tensors):
            dtype = next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)
            batch = cast_batch(batch, dtype, self.rows.device)
        batch = map_tensors(batch, torch.clone)
        plugin = getattr(self._trainer, "precision_plugin", None)
        return batch if plugin is None else plugin.convert_input(batch)

    def _precision(self) -> AbstractContextManager[Any]:
        plugin = getattr(self._trainer, "precision_plugin", None)
        return nullcontext() if plugin is None else plugin.train_step_context()

    def _detach_from_trainer(self) -> None:
        view = None if self._trainer is None else TrainerView(self._trainer)
        if view is not None:
            view.show(self.module)
        for part in self.module.modules():
            if "_trainer" in vars(part):
                detach_from_trainer(part, view)

    def _beyond(self) -> set[int]:
        """Ids of what the strategy and the trainer own, and look after themselves."""
        found = {id(x) for x in (self._trainer, getattr(self._trainer, "strategy", None))}
        for part in self.module.modules():
            own = vars(part)
            found |= {id(own[name]) for name in _STRATEGYS if name in own}
            found |= {id(own.get(name)) for name in ("_trainer", "_fabric", "_device_mesh")}
        return (found | self.units.ids()) - {id(None)}
