"""Pieces of a network: whole layers, query, key and value, gates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_hessrank.network.pieces import fine_pieces, layer_pieces


def shapes(module: nn.Module) -> dict[str, dict[str, slice]]:
    return fine_pieces(module, dict(module.named_parameters()))


def test_every_number_is_in_one_piece() -> None:
    module = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "other": nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
            "gru": nn.GRU(3, 4),
            "cell": nn.LSTMCell(3, 4),
            "plain": nn.Linear(4, 3),
        }
    )
    parameters = dict(module.named_parameters())
    seen = {name: torch.zeros(len(x), dtype=torch.int) for name, x in parameters.items()}
    for piece in fine_pieces(module, parameters).values():
        for name, rows in piece.items():
            seen[name][rows] += 1
    assert all(bool((x == 1).all()) for x in seen.values())


def test_query_key_and_value_are_thirds_of_the_projection() -> None:
    found = shapes(nn.Sequential(nn.MultiheadAttention(4, 2)))
    rows = {"query": slice(0, 4), "key": slice(4, 8), "value": slice(8, 12)}
    for part, own in rows.items():
        assert found[f"0.{part}"] == {"0.in_proj_weight": own, "0.in_proj_bias": own}
    assert set(found["0.out_proj"]) == {"0.out_proj.weight", "0.out_proj.bias"}


def test_attention_of_different_widths_has_a_parameter_for_each() -> None:
    found = shapes(nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True))
    assert found["key"] == {
        "k_proj_weight": slice(None), "in_proj_bias": slice(4, 8), "bias_k": slice(None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "gates"),
    [
        (nn.LSTM(3, 4), ["input_gate", "forget_gate", "cell", "output_gate"]),
        (nn.GRU(3, 4), ["reset_gate", "update_gate", "new"]),
    ],
)
def test_a_gate_without_its_rows_does_nothing(module: nn.Module, gates: list[str]) -> None:
    """By what the documented formula says of a gate whose weights are zero."""
    x = torch.randn(5, 1, 3)
    for name in gates:
        gate = shapes(module)[f"l0.{name}"]
        copy = type(module)(3, 4)
        copy.load_state_dict(module.state_dict())
        with torch.no_grad():
            for parameter, rows in gate.items():
                copy.get_parameter(parameter)[rows] = -1e3 if "bias" in parameter else 0.0
        out, before = copy(x)[0].detach(), module(x)[0].detach()
        if name in {"input_gate", "output_gate"}:
            assert float(out.abs().max()) == 0  # nothing is written, or nothing is shown
        elif name in {"cell", "new"}:
            assert float(out.max()) <= 0  # -1 is written
            if name == "new":
                assert bool((before > 0).any())
        else:
            assert not torch.equal(out, before)


def test_what_is_frozen_is_in_no_piece() -> None:
    module = nn.MultiheadAttention(4, 2)
    module.in_proj_weight.requires_grad_(False)
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert fine_pieces(module, trainable)["query"] == {"in_proj_bias": slice(0, 4)}


def test_layers_are_whole() -> None:
    assert layer_pieces(["a.weight", "a.bias", "scale"]) == {
        "a": {"a.weight": slice(None), "a.bias": slice(None)},
        "scale": {"scale": slice(None)},
    }
