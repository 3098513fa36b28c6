"""A network as a function of its inputs, an evaluation of its loss, and parameters by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Evaluation(NamedTuple):
    """One evaluation of the loss, with its autograd graph."""

    loss: Tensor
    """Scalar mean over the samples of the batch."""
    outputs: tuple[Tensor, ...]
    """The network's outputs, on which the loss depends; empty where they are unknown."""


@dataclass(frozen=True)
class Network:
    """A network as a function of its inputs, with the parameters that it uses inside.

    Nothing is assumed about how the function is written: it may run a whole ``training_step``. Its
    linear operations are seen while it runs.
    """

    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    """Takes tensors like ``inputs`` (any number of samples) and returns the outputs that enter the
    loss function, samples first or flattened into the first dimension."""
    inputs: tuple[Tensor, ...]
    """Floating tensors, samples in the first dimension. The outputs may ignore some of them."""
    parameters: Mapping[str, Tensor]
    """Trainable parameters by qualified name, as ``forward`` uses them."""
    fixes_integers: Callable[[], bool] = lambda: False
    """Whether the outputs depend on integers (tokens) that ``forward`` holds fixed, though the data
    have others."""


def layer_name(parameter: str) -> str:
    """Qualified name of the module that owns a parameter, or the parameter's own at top level."""
    return parameter.rpartition(".")[0] or parameter


def layers_of(parameters: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of parameters by the layer that owns them, both in the order given."""
    layers: dict[str, list[str]] = {}
    for name in parameters:
        layers.setdefault(layer_name(name), []).append(name)
    return layers
