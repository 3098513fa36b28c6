"""Walks of the autograd graph: every edge once, and not beyond the stops."""

from __future__ import annotations

import torch

from lightning_hessrank.network.autograd import graph_edges


def test_every_edge_once() -> None:
    x, w = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    a, b = (x * w).split([1, 2])
    loss = a.sum() + b.sum() + x.sum()
    edges = list(graph_edges([loss, a]))
    assert len(edges) == len(set(edges))
    leaves = [node.variable for node, _ in edges if hasattr(node, "variable")]
    assert {id(leaf) for leaf in leaves} == {id(x), id(w)}
    assert {(a.grad_fn, 0), (a.grad_fn, 1)} <= set(edges)  # one node, its two outputs


def test_stops_are_not_passed() -> None:
    x = torch.ones(3, requires_grad=True)
    h = x.sin()
    loss = (h.cos() * x).sum()
    nodes = {node for node, _ in graph_edges([loss], stops=[h])}
    assert h.grad_fn not in nodes
    assert any(getattr(node, "variable", None) is x for node in nodes)  # on the other way
    without = {node for node, _ in graph_edges([h.cos().sum()], stops=[h])}
    assert not any(hasattr(node, "variable") for node in without)


def test_tensors_without_a_graph_have_no_edges() -> None:
    assert list(graph_edges([torch.ones(2)])) == []
