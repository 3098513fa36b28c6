"""What kind of function a run measures: it may change while the run goes on."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_hessrank.subject.step import StepResult
from lightning_hessrank.subject.subject import Subject


class Form(NamedTuple):
    """What bound, method and layers of a run depend on."""

    parameters: dict[str, int]
    """Entries of each trainable parameter, by name."""
    pruned: int
    """Entries that pruning masks leave out (``torch.nn.utils.prune``)."""
    losses: list[str]
    """Loss function and number of dimensions of each output of the network."""

    @classmethod
    def of(cls, subject: Subject, result: StepResult) -> Form:
        """Return the form of a subject whose step gave a result."""
        # Masks of another kind, such as a causal one of attention, prune nothing.
        buffers = dict(subject.shadow.named_buffers())
        own = [name.removesuffix("_orig") for name in subject.parameters if name.endswith("_orig")]
        pruned = [buffers.get(f"{name}_mask") for name in own]
        return cls(
            {name: x.numel() for name, x in subject.parameters.items()},
            sum(int((x == 0).sum()) for x in pruned if x is not None),
            sorted(f"{x.loss} of {x.tensor.ndim}-d output" for x in result.outputs),
        )

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> Form | None:
        """Take up what a checkpoint kept."""
        return None if state is None else cls(**state)

    def changes(self, before: Form) -> list[str]:
        """Say what has changed, each in a few words."""
        said = []
        if self.parameters != before.parameters or self.pruned != before.pruned:
            said.append(
                f"the trainable parameters ({before.size} before, {self.size} now)"
                if self.size != before.size
                else f"the trainable parameters (still {self.size} of them, not the same)"
            )
        if self.losses != before.losses:
            said.append(
                f"the losses that its outputs enter ({_listed(before.losses)} before, "
                f"{_listed(self.losses)} now)"
            )
        return said

    @property
    def size(self) -> int:
        """Trainable entries that pruning has left."""
        return sum(self.parameters.values()) - self.pruned


def _listed(losses: list[str]) -> str:
    return " + ".join(losses) or "none that is known"
