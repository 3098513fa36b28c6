"""What the linear surrogate does with one call of a function of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hessrank.bounds import operations as ops
from lightning_hessrank.bounds.trace import Activation, LayerUse, Weight, layer_name
from lightning_hessrank.network.layers import LINEAR_CALLS, LinearCall, Slices, bind, linear_call
from lightning_hessrank.network.modes import writes

if TYPE_CHECKING:
    from lightning_hessrank.bounds.surrogate import SurrogateMode


@dataclass
class Call:
    """One call with an activation among its arguments."""

    mode: SurrogateMode
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    activations: list[Activation]
    weights: list[Weight]

    def __post_init__(self) -> None:
        self.replaced: frozenset[str] = frozenset().union(*(a.replaced for a in self.activations))

    def result(self) -> Any:
        """Run the call, or what the surrogate has in its place, and tag the result."""
        result = self._handled()
        if writes(self.func) or self.kwargs.get("inplace"):
            # Views of the argument change as well, and their tags are not followed.
            self.mode.trace.replaced |= self.replaced
        return result

    def _handled(self) -> Any:
        problem = next((a.problem for a in self.activations if a.problem), None)
        if problem is not None:
            return self._run(Activation(None, problem=problem))
        computed = next((w for w in self.weights if w.computed_by), None)
        if computed is not None and self.name not in ops.LOSSES:
            return self._run(Activation(None, problem=_not_free(computed)))
        handlers: list[tuple[Container[str], Callable[[], Any]]] = [
            (ops.LOSSES, self._loss),
            (ops.PRODUCTS, self._product),
            (ops.CASTS, self._identity),
            (ops.DROPOUT, self._dropout),
            (ops.MAX_POOLS, self._maximum),
            (ops.ACTIVATIONS, self._activation),
            (ops.NORMALISATIONS, self._normalisation),
            ({"batch_norm"}, self._batch_norm),
            (LINEAR_CALLS, self._layer),
            ({"detach"}, lambda: self.func(*self.args, **self.kwargs)),
            ({"setitem"}, self._assignment),
        ]
        return next((handle for names, handle in handlers if self.name in names), self._other)()

    def masked(self) -> Any:
        """Run a call that an activation and a mask made of activations enter: one by hand.

        ``h * (h > 0)``, ``where(h > 0, h, 0.1 * h)`` and ``h.masked_fill(h < 0, 0)`` are the
        identity, like the activations that they spell out.
        """
        problem = next((a.problem for a in self.activations if a.problem), None)
        if problem is not None:
            return self._run(Activation(None, problem=problem))
        operands = self.args[1:3] if self.name == "where" else self.args
        chosen = [x for x in operands if isinstance(self.mode.tag_of(x), Activation)]
        by_hand = self.name in {"where", "mul", "rmul", "imul", "masked_fill", "setitem"}
        if not by_hand or not all(_proportional(chosen[0], x) for x in chosen[1:]):
            return self._run(self._problem("it depends on where activations are large or small"))
        self._replace("gates or other nonlinearities between its layers")
        self.mode.trace.replaced |= self.replaced if self.name == "setitem" else frozenset()
        return None if self.name == "setitem" else self._identity()

    def _loss(self) -> Any:
        """The loss itself is of no interest; it may not fit the number of samples either."""
        try:
            return self.func(*self.args, **self.kwargs)
        except (RuntimeError, ValueError):
            return self._first()[0].mean()

    def _product(self) -> Any:
        return self._run(self._problem(ops.PRODUCTS[self.name]))

    def _assignment(self) -> None:
        self.func(*self.args, **self.kwargs)
        self._tag(self.args[0], Activation(None))

    def _run(self, tag: Activation) -> Any:
        return self._tag(self.func(*self.args, **self.kwargs), tag)

    def _tag(self, result: Any, tag: Activation) -> Any:
        """Remember what a result is, and what was replaced on the way to it; return it."""
        return self.mode.tag_all(result, replace(tag, replaced=self.replaced))

    def _problem(self, reason: str) -> Activation:
        """A tag that makes the bound fail, if the output depends on the tensor that bears it."""
        uses = self.mode.trace.uses
        after = f"after layer '{layer_name(min(uses[-1].weights))}'" if uses else "first layer"
        return Activation(
            None, problem=f"{after}: {reason} ({self.name}), so the network has no linear surrogate"
        )

    def _first(self) -> tuple[Tensor, Activation]:
        """The first argument that is an activation, with its tag."""
        for x in tree_leaves((self.args, self.kwargs)):
            tag = self.mode.tag_of(x)
            if isinstance(tag, Activation):
                return x, tag
        raise AssertionError("a call without activations is not handled here")

    def _identity(self, **changes: Any) -> Any:
        x, tag = self._first()
        in_place = getattr(self.func, "__name__", "").endswith("_") or self.kwargs.get("inplace")
        result = x if in_place else x.clone()
        return self._tag(result, replace(tag, **changes))

    def _replace(self, what: str) -> None:
        self.replaced |= {what}

    def _dropout(self) -> Any:
        given = bind(("input", "p", "training"), self.args, self.kwargs)
        if given.get("training", True) and given.get("p", 0.5) > 0:
            self._replace(f"{self.name} in training mode")
        return self._identity()

    def _activation(self) -> Any:
        dim, before = None, self.replaced
        if self.name == "log_softmax":
            dim = bind(("input", "dim"), self.args, self.kwargs).get("dim")
        self._replace(self.name)
        return self._identity(softmax_dim=dim, before_softmax=before)

    def _maximum(self) -> Any:
        result = ops.average_instead_of_max(self.name, self.args, self.kwargs)
        if result is None:
            return self._run(self._problem("a maximum over everything has no linear stand-in"))
        self._replace(self.name)
        return self._tag(result, Activation(None))

    def _batch_norm(self) -> Any:
        given = bind(ops.BATCH_NORM_ARGUMENTS, self.args, self.kwargs)
        x: Tensor = given["input"]
        if given.get("training", False):
            self._replace("batch_norm in training mode")
        scale = self.mode.weights.constant(x, x.shape[1])
        shift = self.mode.weights.constant(x, x.shape[1])
        return self._affine(
            channels_last(scale, x) * x + channels_last(shift, x), given, per_channel=True
        )

    def _normalisation(self) -> Any:
        given = bind(ops.NORMALISATIONS[self.name], self.args, self.kwargs)
        self._replace(self.name)
        per_channel = self.name in {"group_norm", "instance_norm"}
        return self._affine(given["input"].clone(), given, per_channel=per_channel)

    def _affine(self, x: Tensor, given: dict[str, Any], *, per_channel: bool) -> Any:
        """Multiply with the weight of a normalisation and add its bias."""
        result = x
        for role, apply in (("weight", torch.mul), ("bias", torch.add)):
            value = given.get(role)
            if value is None:
                continue
            tag = self.mode.tag_of(value)
            result = apply(result, channels_last(value, x) if per_channel else value)
            if isinstance(tag, Weight):
                empty: frozenset[str] = frozenset()
                is_bias = role == "bias"
                self._record(
                    empty if is_bias else tag.names, tag.names if is_bias else empty, None, result
                )
        return self._tag(result, Activation(None))

    def _layer(self) -> Any:
        call = linear_call(self.name, self.func, self.args, self.kwargs, self.mode.is_weight)
        if call is None:
            return self._other()
        mode, index = self.mode, len(self.mode.trace.uses)
        output = call.apply(call.input, call.weight)
        if call.bias is not None:
            output = call.apply_bias(output, call.bias)
        weight_tag = mode.tag_of(call.weight)
        bias_tag = mode.tag_of(call.bias)
        assert isinstance(weight_tag, Weight)
        self._record(
            weight_tag.names,
            bias_tag.names if isinstance(bias_tag, Weight) else frozenset(),
            call if mode.is_weight(call.bias) else replace(call, bias=None),
            output,
            is_linear=weight_tag.linear and (not isinstance(bias_tag, Weight) or bias_tag.linear),
        )
        # A copy: what is recorded must not change if user code goes on in place.
        return self._tag(output.clone(), Activation(index))

    def _record(
        self,
        weights: frozenset[str],
        biases: frozenset[str],
        call: LinearCall | None,
        output: Tensor,
        *,
        is_linear: bool = True,
    ) -> None:
        _, tag = self._first()
        trace = self.mode.trace
        folded = None
        if call is not None and call.type == "linear" and tag.positions > 1:
            m, c = call.slices.rows, call.slices.columns
            folded = Slices(1, m, c // tag.positions, tag.positions)
        use = LayerUse(
            len(trace.uses), weights, biases, call, tag.source, is_linear, output, folded
        )
        trace.uses.append(use)

    def _other(self) -> Any:
        """A call that is not in any table: linear in its activations, or not."""
        is_product = len(self.activations) > 1 and self.name in {"mul", "rmul", "imul"}
        if is_product and len({id(a.token) for a in self.activations}) == 1:
            return self._identity()
        result = self.func(*self.args, **self.kwargs)
        if not any(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves(result)):
            is_comparison = isinstance(result, Tensor) and result.dtype == torch.bool
            return self.mode.note_masks(result) if is_comparison else result  # a shape, an index
        if not any(x.requires_grad for x in tree_leaves(result) if isinstance(x, Tensor)):
            return result  # a constant of the same shape
        known = self.name in ops.LINEAR and not self.weights
        if not known and not self._is_affine():
            return self._tag(result, self._problem("it is not linear in its inputs"))
        if self.weights:
            return self._opaque(result)
        _, tag = self._first()
        if self.name == "to" and isinstance(result, Tensor):
            return self._identity()
        others = len(self.activations) - (self.name == "view_as")  # whose second gives a shape
        if self.name not in ops.RESHAPES or others > 1:
            return self._tag(result, Activation(None))
        return self._tag(result, self._reshaped(tag, result))

    def _reshaped(self, tag: Activation, result: Tensor) -> Activation:
        x, _ = self._first()
        positions = tag.positions if x.shape == result.shape else 1
        if x.ndim > 2 and result.ndim == 2 and result.shape[0] == x.shape[0]:
            positions = x[0, 0].numel()
        if x.shape == result.shape:  # an alias
            return tag
        return replace(tag, positions=positions, token=object(), softmax_dim=None)

    def _opaque(self, result: Any) -> Any:
        """Parameters that enter linearly in the activation, but not as a matrix."""
        names = frozenset().union(*(w.names for w in self.weights))
        empty: frozenset[str] = frozenset()
        is_bias = self.name in {"add", "radd", "iadd", "sub", "rsub", "isub"}
        weights, biases = (empty, names) if is_bias else (names, empty)
        self._record(weights, biases, None, result, is_linear=False)
        return self._tag(result, Activation(None))

    def _is_affine(self) -> bool:
        """Test the call with random tensors in the place of its activations."""
        generator = torch.Generator().manual_seed(0)

        def substitute(make: Callable[[Tensor], Tensor]) -> Tensor:
            def change(x: Any) -> Any:
                return make(x) if isinstance(self.mode.tag_of(x), Activation) else x

            with torch.no_grad():
                args, kwargs = tree_map(change, (self.args, self.kwargs))
                results = tree_leaves(self.func(*args, **kwargs))
            parts = [x.flatten() for x in results if isinstance(x, Tensor)]
            return torch.cat([x for x in parts if x.is_floating_point()] or [torch.zeros(0)])

        def draw(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

        pairs: dict[int, tuple[Tensor, Tensor]] = {}

        def pair(x: Tensor) -> tuple[Tensor, Tensor]:
            return pairs.setdefault(id(x), (draw(x), draw(x)))

        one, two = substitute(lambda x: pair(x)[0]), substitute(lambda x: pair(x)[1])
        both = substitute(lambda x: pair(x)[0] + pair(x)[1])
        none = substitute(torch.zeros_like)
        return one.shape == both.shape and bool(
            torch.allclose(one + two, both + none, rtol=1e-8, atol=1e-8)
        )


def _proportional(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor is a multiple of another."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if a.shape != b.shape:
            return False
        square = (a * a).sum()
        error = (square * b - (a * b).sum() * a).abs().max()
        return bool(error <= 1e-9 * square * b.abs().max())


def _not_free(weight: Weight) -> str:
    return (
        f"layer '{layer_name(min(weight.names))}': its weight is computed from parameters "
        f"({weight.computed_by}), so that random weights do not stand for all that it can have"
    )


def channels_last(vector: Tensor, like: Tensor) -> Tensor:
    """Shape a vector so that it runs along dimension 1 of ``like``."""
    return vector.reshape(-1, *(1,) * (like.ndim - 2))
