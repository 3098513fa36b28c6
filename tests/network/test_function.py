"""Parameters are grouped by the module that owns them."""

from __future__ import annotations

from torch import nn

from lightning_hessrank.network.function import layer_name, layers_of


def test_parameters_by_layer_in_their_order() -> None:
    names = ["scale", "a.weight", "a.b.weight", "a.bias", "a.b.bias"]
    assert layers_of(names) == {
        "scale": ["scale"],
        "a": ["a.weight", "a.bias"],
        "a.b": ["a.b.weight", "a.b.bias"],
    }
    assert list(layers_of(names)) == ["scale", "a", "a.b"]
    assert layers_of([]) == {}
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1, bias=False)))
    assert [layer_name(n) for n, _ in net.named_parameters()] == ["0", "0", "1.0"]
