"""What the linear surrogate does with a call of PyTorch: one function for every kind of operation.

Two designs were weighed. (a) A class of calls with a method for every kind and a table of methods:
an operation is known in three places, and the class and the mode that makes its objects need each
other. (b) Functions, registered by the names of operations, that get a :class:`Call`: its arguments
and the run that it is part of. (b) is used: an operation is one decorated function, also from
elsewhere; it returns what the network gets in the place of the call's result, tagged with what is
known of it.

Layers have no rule: :func:`~lightning_hessrank.network.layers.reads` tells of them. What has none
either is tried out: if it is not affine in its activations, there is no surrogate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hessrank.bounds import operations as ops
from lightning_hessrank.bounds.inputs import gaussian_like
from lightning_hessrank.bounds.trace import Activation, LayerUse, Run, Weight
from lightning_hessrank.network.batches import stored
from lightning_hessrank.network.function import layer_name
from lightning_hessrank.network.layers import Layer, Slices, read_layer
from lightning_hessrank.network.losses import TABLE
from lightning_hessrank.network.modes import name_of, writes

_NONE: frozenset[str] = frozenset()


@dataclass
class Call:
    """One call with an activation among its arguments."""

    run: Run
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        tags = self.run.tags_in((self.args, self.kwargs))
        self.name = name_of(self.func)
        self.has_masks = any(map(self.run.is_mask, tree_leaves((self.args, self.kwargs))))
        """Whether something that says where activations are large or small is among them."""
        self.activations = [t for t in tags if isinstance(t, Activation)]
        self.weights = [t for t in tags if isinstance(t, Weight)]
        self.replaced = _NONE.union(*(a.replaced for a in self.activations))
        """What was replaced on the way to the result."""

    def bind(self, *names: str) -> dict[str, Any]:
        """Arguments by name."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    def first(self) -> tuple[Tensor, Activation]:
        """The first argument that is an activation, with its tag."""
        for x in tree_leaves((self.args, self.kwargs)):
            tag = self.run.tag_of(x)
            if isinstance(tag, Activation):
                return x, tag
        raise AssertionError("a call without activations is not handled here")

    def plain(self) -> Any:
        """What the function itself returns."""
        return self.func(*self.args, **self.kwargs)

    def tag(self, result: Any, tag: Activation) -> Any:
        """Remember what a result is, and what was replaced on the way to it; return it."""
        return self.run.tag_all(result, replace(tag, replaced=self.replaced))

    def run_as(self, tag: Activation) -> Any:
        """Run the call as it is."""
        return self.tag(self.plain(), tag)

    def identity(self, **changes: Any) -> Any:
        """Its first activation in the place of the result."""
        x, tag = self.first()
        in_place = getattr(self.func, "__name__", "").endswith("_") or self.kwargs.get("inplace")
        return self.tag(x if in_place else x.clone(), replace(tag, **changes))

    def problem(self, reason: str) -> Activation:
        """A tag that makes the bound fail, if the output depends on the tensor that bears it."""
        uses = self.run.trace.uses
        after = f"after layer '{uses[-1].owner}'" if uses else "first layer"
        return Activation(
            None, problem=f"{after}: {reason} ({self.name}), so the network has no linear surrogate"
        )

    def record(
        self,
        weights: frozenset[str],
        biases: frozenset[str],
        output: Tensor,
        layer: Layer | None = None,
        *,
        is_linear: bool = True,
    ) -> int:
        """Remember a use of parameters; return its number."""
        _, tag = self.first()
        uses, folded = self.run.trace.uses, None
        if layer is not None and tag.positions > 1 and layer.slices.taps == 1:
            groups, m, c, _ = layer.slices
            folded = Slices(groups, m, c // tag.positions, tag.positions)
        use = LayerUse(len(uses), weights, biases, layer, tag.source, is_linear, output, folded)
        uses.append(use)
        return use.index


Rule = Callable[[Call], Any]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Let a function handle the calls of some operations, named as ``name_of`` gives them."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def surrogate_of(call: Call) -> Any:
    """What the surrogate has in the place of a call, with its result tagged."""
    problem = next((a.problem for a in call.activations if a.problem), None)
    computed = next((w for w in call.weights if w.computed_by), None)
    if problem is None and computed is not None and call.func not in TABLE:
        problem = (
            f"layer '{layer_name(min(computed.names))}': its weight is computed from parameters "
            f"({computed.computed_by}), so that random weights do not stand for all that it can "
            "have"
        )
    result = _ruled(call) if problem is None else call.run_as(Activation(None, problem=problem))
    if writes(call.func) or call.kwargs.get("inplace"):
        # Views of the argument change as well, and their tags are not followed.
        call.run.trace.replaced |= call.replaced
    return result


def _ruled(call: Call) -> Any:
    if call.func in TABLE:
        return _loss(call)
    if call.has_masks:
        return _masked(call)
    is_weight = call.run.is_weight
    layer = read_layer(call.func, call.args, call.kwargs, is_weight)
    if layer is not None and is_weight(layer.weight) and not is_weight(layer.input):
        return _layer(call, layer)
    return _RULES.get(call.name, _general)(call)


def _layer(call: Call, layer: Layer) -> Any:
    run = call.run
    output = layer.apply(layer.input, layer.weight)
    if layer.bias is not None:
        output = layer.add_bias(output, layer.bias)
    weight, bias = run.tag_of(layer.weight), run.tag_of(layer.bias)
    assert isinstance(weight, Weight)
    is_linear = weight.linear
    if isinstance(bias, Weight):
        is_linear &= bias.linear
    else:
        layer = replace(layer, bias=None)
    biases = bias.names if isinstance(bias, Weight) else _NONE
    index = call.record(weight.names, biases, output, layer, is_linear=is_linear)
    # A copy: what is recorded must not change if user code goes on in place.
    return call.tag(output.clone(), Activation(index))


def _loss(call: Call) -> Any:
    """The surrogate ends where the loss begins: that may not fit the number of samples either."""
    try:
        return call.plain()
    except (RuntimeError, ValueError):
        return call.first()[0].mean()


#: What an activation that is written out by hand does with a mask.
_BY_HAND = frozenset({"where", "mul", "rmul", "imul", "masked_fill", "setitem"})


def _masked(call: Call) -> Any:
    """An activation and a mask made of activations: an activation function by hand.

    ``h * (h > 0)``, ``where(h > 0, h, 0.1 * h)`` and ``h.masked_fill(h < 0, 0)`` are the identity,
    like the activations that they spell out.
    """
    leaves = tree_leaves((call.args, call.kwargs))
    first, *others = (x for x in leaves if call.run.is_activation(x))
    if call.name not in _BY_HAND or not all(_is_multiple(first, x) for x in others):
        return call.run_as(call.problem("it depends on where activations are large or small"))
    call.replaced |= {"gates or other nonlinearities between its layers"}
    if call.name == "setitem":
        return None
    return call.identity()


def _is_multiple(a: Tensor, b: Tensor) -> bool:
    """Whether ``b`` is a multiple of ``a``."""
    with torch.no_grad():
        if a.shape != b.shape:
            return False
        square = (a * a).sum()
        error = (square * b - (a * b).sum() * a).abs().max()
        return bool(error <= 1e-9 * square * b.abs().max())


@rule(*ops.PRODUCTS)
def _product(call: Call) -> Any:
    return call.run_as(call.problem(ops.PRODUCTS[call.name]))


@rule(*ops.CASTS, "to")
def _cast(call: Call) -> Any:
    """The surrogate stays in its own precision."""
    result = call.plain()
    return result if _is_constant(result) else call.identity()


@rule("detach")
def _detach(call: Call) -> Any:
    return call.plain()


@rule("setitem")
def _assignment(call: Call) -> None:
    call.plain()
    call.tag(call.args[0], Activation(None))


@rule(*ops.DROPOUT)
def _dropout(call: Call) -> Any:
    given = call.bind("input", "p", "training")
    if given.get("training", True) and given.get("p", 0.5) > 0:
        call.replaced |= {f"{call.name} in training mode"}
    return call.identity()


@rule(*ops.ACTIVATIONS)
def _activation(call: Call) -> Any:
    before = call.replaced
    dim = call.bind("input", "dim").get("dim") if call.name == "log_softmax" else None
    call.replaced |= {call.name}
    return call.identity(softmax_dim=dim, before_softmax=before)


@rule(*ops.MAX_POOLS)
def _maximum(call: Call) -> Any:
    result = ops.average_instead_of_max(call.name, call.args, call.kwargs)
    if result is None:
        return call.run_as(call.problem("a maximum over everything has no linear stand-in"))
    call.replaced |= {call.name}
    return call.tag(result, Activation(None))


@rule("batch_norm")
def _batch_norm(call: Call) -> Any:
    given = call.bind(*ops.BATCH_NORM_ARGUMENTS)
    x: Tensor = given["input"]
    if given.get("training", False):
        call.replaced |= {"batch_norm in training mode"}
    scale, shift = (call.run.weights.constant(x, x.shape[1]) for _ in range(2))
    x = _along_channels(scale, x) * x + _along_channels(shift, x)
    return _affine(call, x, given, per_channel=True)


@rule(*ops.NORMALISATIONS)
def _normalisation(call: Call) -> Any:
    given = call.bind(*ops.NORMALISATIONS[call.name])
    call.replaced |= {call.name}
    per_channel = call.name in {"group_norm", "instance_norm"}
    return _affine(call, given["input"].clone(), given, per_channel=per_channel)


def _affine(call: Call, x: Tensor, given: dict[str, Any], *, per_channel: bool) -> Any:
    """Multiply with the weight of a normalisation and add its bias."""
    for role, apply in (("weight", torch.mul), ("bias", torch.add)):
        value = given.get(role)
        if value is None:
            continue
        tag = call.run.tag_of(value)
        x = apply(x, _along_channels(value, x) if per_channel else value)
        if isinstance(tag, Weight):
            names = (tag.names, _NONE) if role == "weight" else (_NONE, tag.names)
            call.record(*names, x)
    return call.tag(x, Activation(None))


def _along_channels(vector: Tensor, like: Tensor) -> Tensor:
    """Shape a vector so that it runs along dimension 1 of ``like``."""
    return vector.reshape(-1, *(1,) * (like.ndim - 2))


@rule("mul", "rmul", "imul")
def _multiple(call: Call) -> Any:
    """A product of what is equal in the surrogate, as in ``x * sigmoid(x)``, is an activation."""
    if len(call.activations) > 1 and len({id(a.token) for a in call.activations}) == 1:
        return call.identity()
    return _general(call)


class _SparseProduct(torch.autograd.Function):
    """A constant sparse matrix times a dense one; PyTorch's own has no forward-mode derivative."""

    @staticmethod
    def forward(matrix: Tensor, x: Tensor) -> Tensor:
        return torch.sparse.mm(matrix, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.matrix = inputs[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, _SparseProduct.apply(ctx.matrix.t(), cotangent)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return cast("Tensor", _SparseProduct.apply(ctx.matrix, tangent))


@rule("mm", "matmul", "sparse_mm")
def _matrix_product(call: Call) -> Any:
    """A sparse constant, such as the adjacency of a graph, is a linear map of its own."""
    if len(call.args) == 2 and call.args[0].layout is not torch.strided and not call.weights:
        matrix, x = call.args
        if call.run.tag_of(matrix) is None and x.ndim == 2:
            return call.tag(_SparseProduct.apply(matrix, x), Activation(None))
    return _general(call)


@rule(*ops.RESHAPES)
def _reshape(call: Call) -> Any:
    """The same numbers in the same order. An alias, of the same shape, is what it is an alias of.

    The second activation of ``x.view_as(other)`` gives a shape only.
    """
    if call.weights or len(call.activations) > 1 + (call.name == "view_as"):
        return _general(call)
    (x, tag), result = call.first(), call.plain()
    if _is_constant(result):
        return result
    if x.shape != result.shape:
        flattened = x.ndim > 2 and result.ndim == 2 and result.shape[0] == x.shape[0]
        positions = x[0, 0].numel() if flattened else 1
        tag = replace(tag, positions=positions, token=object(), softmax_dim=None)
    return call.tag(result, tag)


def _general(call: Call) -> Any:
    """A call of which nothing is known: affine in its activations, or not."""
    in_place = writes(call.func)
    affine = (call.name in ops.LINEAR and not call.weights) or (
        in_place and _is_affine(call)  # before it changes what it is tried on
    )
    result = call.plain()
    if _is_constant(result):
        is_comparison = isinstance(result, Tensor) and result.dtype == torch.bool
        return call.run.note_masks(result) if is_comparison else result
    if not affine and (in_place or not _is_affine(call)):
        return call.tag(result, call.problem("it is not linear in its inputs"))
    if call.weights:  # parameters that enter linearly in the activation, but not as a matrix
        names = _NONE.union(*(w.names for w in call.weights))
        is_bias = call.name in {"add", "radd", "iadd", "sub", "rsub", "isub"}
        roles = (_NONE, names) if is_bias else (names, _NONE)
        call.record(*roles, result, is_linear=False)
    return call.tag(result, Activation(None))


def _is_constant(result: Any) -> bool:
    """Whether a result is a shape, a comparison, an index, or a constant of the same shape."""
    tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return not any(x.is_floating_point() for x in tensors) or not any(
        x.requires_grad for x in tensors
    )


def _is_affine(call: Call) -> bool:
    """Test a call with random tensors in the place of its activations, and copies of the others.

    What works in place changes these, such as the zeros that a ``scatter_add_`` adds to.
    """
    generator = torch.Generator().manual_seed(0)
    leaves = {id(x): x for x in tree_leaves((call.args, call.kwargs)) if call.run.is_activation(x)}

    def draw() -> dict[int, Tensor]:
        return {i: gaussian_like(x, generator) for i, x in leaves.items()}

    def at(values: dict[int, Tensor]) -> Tensor:
        def given(x: object) -> object:
            value = values.get(id(x), x)
            return value.clone() if isinstance(value, Tensor) and writes(call.func) else value

        with torch.no_grad():
            args, kwargs = tree_map(given, (call.args, call.kwargs))
            results = tree_leaves(call.func(*args, **kwargs))
        floats = [x for x in results if isinstance(x, Tensor) and x.is_floating_point()]
        return torch.cat([stored(x)[-1].flatten() for x in floats] or [torch.zeros(0)])

    x, y = draw(), draw()
    one, two, both = at(x), at(y), at({i: x[i] + y[i] for i in leaves})
    none = at({i: 0 * x for i, x in leaves.items()})
    return one.shape == both.shape and torch.allclose(one + two, both + none, rtol=1e-8, atol=1e-8)
