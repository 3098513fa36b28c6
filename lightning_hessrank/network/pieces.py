"""The pieces of a network that blocks of its Hessian are taken for: layers, and parts of these.

PyTorch keeps some matrices that do different things in one parameter, one below the other: query,
key and value of attention, the gates of a recurrent layer. Which rows are whose is documented by
these modules; a fused projection of someone's own may have any order, and stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lightning_hessrank.network.function import layer_name, layers_of

_WHOLE = slice(None)
_ATTENTION = ("query", "key", "value")
#: Parameters of attention that are one part by themselves, by the beginning of their names.
_OF_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value"} | {
    "bias_k": "key",
    "bias_v": "value",
}
_LSTM = ("input_gate", "forget_gate", "cell", "output_gate")
_GRU = ("reset_gate", "update_gate", "new")
_GATES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LSTM: _LSTM,
    nn.LSTMCell: _LSTM,
    nn.GRU: _GRU,
    nn.GRUCell: _GRU,
}


def layer_pieces(parameters: Iterable[str]) -> dict[str, dict[str, slice]]:
    """Every layer as a whole, by its name: its parameters, with all of their rows."""
    return {layer: dict.fromkeys(names, _WHOLE) for layer, names in layers_of(parameters).items()}


def fine_pieces(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, slice]]:
    """Every layer by its name, or the parts of it that share its parameters: ``LAYER.query``.

    Of :class:`torch.nn.MultiheadAttention` query, key and value; of LSTM and GRU (and their cells)
    the gates, of every level and direction by itself: ``LAYER.l0.forget_gate``.

    Args:
        module: the network.
        parameters: its trainable ones by qualified name.

    Returns:
        For every piece its parameters, with those of their rows that belong to it.
    """
    found: dict[str, dict[str, slice]] = {}
    for name, parameter in parameters.items():
        path, _, own = name.rpartition(".")
        for part, rows in _parts(module.get_submodule(path), own, parameter.shape[:1].numel()):
            piece = f"{path}.{part}".lstrip(".") if part else layer_name(name)
            found.setdefault(piece, {})[name] = rows
    return found


def _parts(owner: nn.Module, name: str, rows: int) -> Iterable[tuple[str, slice]]:
    """Parts of a layer that a parameter of its own belongs to, with the rows of each."""
    if isinstance(owner, nn.MultiheadAttention):
        alone = [part for start, part in _OF_ATTENTION.items() if name.startswith(start)]
        return [(alone[0], _WHOLE)] if alone else _split(_ATTENTION, rows)
    gates = next((x for kind, x in _GATES.items() if isinstance(owner, kind)), ())
    if not gates:
        return [("", _WHOLE)]
    # weight_ih_l0_reverse; of a cell weight_ih
    level = ".".join(name.split("_")[2:])
    if "_hr" in name:
        return [(f"{level}.projection", _WHOLE)]
    return _split([f"{level}.{gate}".lstrip(".") for gate in gates], rows)


def _split(parts: Iterable[str], rows: int) -> list[tuple[str, slice]]:
    names = list(parts)
    size = rows // len(names)
    return [(part, slice(i * size, (i + 1) * size)) for i, part in enumerate(names)]
