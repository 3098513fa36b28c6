"""What a pair is, and how a model is called: one meaning for every door.

A *tuple* of two is one ``(inputs, targets)`` pair, whatever its entries are. Any other iterable is
one of pairs. A *list* of two can be either: what a ``DataLoader`` yields is a list ``[inputs,
targets]``, and so is a list of two pairs; its entries decide, and where they do not, it is refused
rather than guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

Pair = tuple[Any, Any]


def as_pairs(data: Any) -> list[Pair]:
    """Return ``data`` as a list of ``(inputs, targets)`` pairs.

    Args:
        data: one pair, or an iterable of pairs.

    Raises:
        TypeError: it is neither.
        ValueError: there is no pair in it, or it could be read either way.
    """
    if isinstance(data, tuple) and len(data) == 2:
        return [data]
    if isinstance(data, list) and len(data) == 2 and not all(map(_is_pair, data)):
        return [(data[0], data[1])]
    if isinstance(data, list) and len(data) == 2 and all(isinstance(x, list) for x in data):
        raise ValueError(
            "data is a list of two lists of two, which may be one pair of two inputs and two "
            "targets or two pairs; pass a tuple (inputs, targets) for one pair, or a list of "
            "tuples [(inputs, targets), ...] for several"
        )
    if isinstance(data, (Tensor, str, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(
            "data must be an (inputs, targets) pair or an iterable of such pairs, got "
            f"{type(data).__name__}"
        )
    pairs = list(data)
    for pair in pairs:
        if not _is_pair(pair):
            raise TypeError(
                "data must be an (inputs, targets) pair or an iterable of such pairs, got an "
                f"iterable of {type(pair).__name__}"
            )
    if not pairs:
        raise ValueError("data has no batches; pass at least one (inputs, targets) pair")
    return [(pair[0], pair[1]) for pair in pairs]


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with its inputs.

    A tuple or list becomes positional arguments where ``forward`` takes so many, a dict keyword
    arguments where it takes arguments of these names; else they are one argument, like all else.
    """
    if isinstance(inputs, Mapping) and _takes(model, (), inputs):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)) and _takes(model, inputs, {}):
        return model(*inputs)
    return model(inputs)


def _takes(model: nn.Module, args: Iterable[Any], kwargs: Mapping[Any, Any]) -> bool:
    if not all(isinstance(name, str) for name in kwargs):
        return False
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a function without a signature: a scripted one
        return not kwargs
    return True
