"""What one run of the linear surrogate saw, and the weights that it runs with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from lightning_hessrank.network.function import layer_name
from lightning_hessrank.network.layers import Layer, Slices

#: Larger weights are Gaussian: their decomposition takes long, and they are seldom sampled.
MAX_CONDITIONED = 100_000
INPUT = -1
"""Source of an activation that is the network's input."""


@dataclass(frozen=True, eq=False)
class Activation:
    """What is known of a tensor that depends on the inputs."""

    source: int | None
    """The use whose output it is, up to identities and reshapes; ``INPUT``; or ``None``."""
    positions: int = 1
    """Positions per channel, where channels and positions were flattened into one dimension."""
    token: object = field(default_factory=object)
    """Shared by tensors that are equal in the surrogate, such as ``x`` and ``sigmoid(x)``."""
    problem: str | None = None
    """Why it is not a multilinear function of inputs and parameters, if it is not."""
    softmax_dim: int | None = None
    """Set on the output of a ``log_softmax``: along it, a shift is not seen by what follows."""
    before_softmax: frozenset[str] = frozenset()
    """What was replaced before that ``log_softmax``."""
    replaced: frozenset[str] = frozenset()
    """What was replaced on the way from the inputs, in words."""


@dataclass(frozen=True)
class Weight:
    """What is known of a tensor that depends on parameters but not on the inputs."""

    names: frozenset[str]
    linear: bool = True
    """Whether it is linear in each of them: views, transposes, multiples."""
    computed_by: str | None = None
    """The first function on the way that is not polynomial in them: an ``exp``, a ``clamp``."""


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One use of parameters: a linear operation, or one only known to be linear in its input."""

    index: int
    weights: frozenset[str]
    """Names of the parameters that the weight is made of."""
    biases: frozenset[str]
    layer: Layer | None
    """``None``: the parameters enter in another way than as a weight with a matrix."""
    source: int | None
    """The use whose output this one reads; see :class:`Activation`."""
    is_linear: bool
    """Whether the operation is linear in each of these parameters."""
    output: Tensor
    folded: Slices | None = None
    """For a linear layer that reads flattened feature maps: ``c`` channels at ``k`` positions."""

    @property
    def names(self) -> frozenset[str]:
        """Of all its parameters."""
        return self.weights | self.biases

    @property
    def owner(self) -> str:
        """Name of the layer, or of one of them."""
        return layer_name(min(self.names))


@dataclass
class Trace:
    """What one run of the surrogate did."""

    inputs: tuple[Tensor, ...] = ()
    """Leaves of the graph that the outputs were computed with."""
    outputs: tuple[Tensor, ...] = ()
    uses: list[LayerUse] = field(default_factory=list)
    replaced: frozenset[str] = frozenset()
    """What was replaced on the way to the outputs; empty where the network is multilinear."""
    sources: tuple[int | None, ...] = ()
    """The use whose output each output is."""
    softmax_dim: int | None = None
    """Of the ``log_softmax`` that a single output came from."""
    before_softmax: frozenset[str] = frozenset()
    """What was replaced before it."""


class Weights:
    """Values that the surrogate runs with, in place of the network's own parameters."""

    def __init__(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        self.generator = generator
        self.values = {name: self.draw(p) for name, p in parameters.items()}
        self._constants: list[Tensor] = []
        self._next = 0

    def draw(self, like: Tensor) -> Tensor:
        """Random, well conditioned, and scaled so that signals keep their size.

        Products of Gaussian matrices are so ill-conditioned that ranks drown in rounding. Singular
        vectors of such a matrix with singular values near one are as generic as it is.
        """
        if like.ndim < 2:
            return self._vector(like.shape).to(like)
        value = torch.randn(like.shape, generator=self.generator, dtype=torch.float64)
        if 0 < like.numel() <= MAX_CONDITIONED:
            left, values, right = torch.linalg.svd(value.flatten(1), full_matrices=False)
            values = self._vector(values.shape)
            value = ((left * values) @ right).reshape(like.shape)
        else:
            value /= max(1, like[0].numel()) ** 0.5
        return value.to(like)

    def _vector(self, shape: torch.Size) -> Tensor:
        """Random entries of either sign, none of them small."""
        values = 2 * torch.rand(shape, generator=self.generator, dtype=torch.float64) - 1
        return values + 0.5 * values.sign()

    def moved(self) -> Weights:
        """The same weights with a random direction as tangent, for forward-mode derivatives."""
        moved = copy.copy(self)
        moved.values = {
            name: forward_ad.make_dual(value, self.draw(value))
            for name, value in self.values.items()
        }
        return moved

    def rewind(self) -> None:
        """Start a run: constants come in the order in which they were first drawn."""
        self._next = 0

    def constant(self, like: Tensor, size: int) -> Tensor:
        """A random vector that stays the same in every run: a statistic of batch norm."""
        if self._next == len(self._constants):
            self._constants.append(self._vector(torch.Size([size])))
        self._next += 1
        return self._constants[self._next - 1].to(like)


class Run:
    """What is known of the tensors of one run of the surrogate, and its trace."""

    def __init__(self, parameters: Iterable[str], weights: Weights) -> None:
        self.weights = weights
        self.trace = Trace()
        # Keeps tagged tensors alive, so that their ids stay theirs.
        self._tags: dict[int, tuple[Tensor, Activation | Weight]] = {}
        self._masks: dict[int, Tensor] = {}
        for name in parameters:
            self.tag_all(weights.values[name], Weight(frozenset({name})))

    def tag_all(self, result: Any, tag: Activation | Weight) -> Any:
        """Remember what every floating-point tensor of a result is; return it."""
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self._tags[id(x)] = (x, tag)
        return result

    def tag_of(self, value: object) -> Activation | Weight | None:
        """What a value is, if it depends on inputs or parameters."""
        return self._tags[id(value)][1] if id(value) in self._tags else None

    def tags_in(self, values: Any) -> list[Activation | Weight]:
        """The tags of all leaves that have one."""
        return [tag for x in tree_leaves(values) if (tag := self.tag_of(x)) is not None]

    def note_masks(self, result: Any) -> Any:
        """Remember that all tensors of a result are masks; return it."""
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.ndim:
                self._masks[id(x)] = x
        return result

    def is_mask(self, value: object) -> bool:
        """Whether a value says where activations are large or small, as a number or a truth."""
        return id(value) in self._masks

    def is_weight(self, value: object) -> bool:
        """Whether a value depends on parameters and not on inputs."""
        return isinstance(self.tag_of(value), Weight)

    def is_activation(self, value: object) -> bool:
        """Whether a value depends on inputs."""
        return isinstance(self.tag_of(value), Activation)
