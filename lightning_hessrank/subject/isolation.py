"""Context managers that leave a process as they found it: generators, modes and global flags."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from lightning_hessrank.subject.precision import KeepPrecision
from lightning_hessrank.subject.substitutes import TwiceDifferentiable


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators of torch (CPU and every accelerator), numpy and Python on exit."""
    restore = _rng_restorers()
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


@contextmanager
def frozen_rng(seed: int) -> Iterator[None]:
    """Draw from generators seeded with ``seed``, then put the caller's generators back.

    Two runs of the same code inside draw the same numbers, as products with one Hessian must.
    """
    with preserved_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)
        yield


def _rng_restorers() -> list[Callable[[], None]]:
    cpu = torch.get_rng_state()
    python = random.getstate()
    restore: list[Callable[[], None]] = [
        lambda: torch.set_rng_state(cpu),
        lambda: random.setstate(python),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda: list[Tensor] = torch.cuda.get_rng_state_all()
        restore.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restore.append(lambda: torch.mps.set_rng_state(mps))
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        state = numpy.random.get_state()
        restore.append(lambda: numpy.random.set_state(state))
    return restore


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute with plain autograd inside, whatever the caller's modes, and keep the generators.

    Gradients on; inference mode, autocast and anomaly detection off (the latter raises where a
    measurement reports nan).
    """
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        yield


@contextmanager
def differentiable_twice(dtype: torch.dtype, *, cudnn: bool = True) -> Iterator[None]:
    """Set the global flags under which a step can be differentiated twice, in ``dtype``.

    ``dtype`` is the default for new tensors, and stands for every floating type that the step
    names; compiled functions run eagerly; attention takes the math kernel, since the fused ones
    have no second derivative; gradient checkpointing is off.

    Args:
        dtype: the measuring precision.
        cudnn: ``False`` for recurrent layers, whose cuDNN kernels have no second derivative.
    """
    default = torch.get_default_dtype()
    cudnn_before = torch.backends.cudnn.enabled
    with ExitStack() as stack:
        stack.enter_context(undisturbed())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_eager())
        stack.enter_context(_without_checkpointing())
        stack.enter_context(TwiceDifferentiable())
        stack.enter_context(KeepPrecision(dtype))
        try:
            torch.set_default_dtype(dtype)
            torch.backends.cudnn.enabled = cudnn_before and cudnn
            yield
        finally:
            torch.set_default_dtype(default)
            torch.backends.cudnn.enabled = cudnn_before


@contextmanager
def own_figures() -> Iterator[None]:
    """Let code inside have figures of ``pyplot`` of its own, and close them on exit.

    The figures of the process are out of its sight meanwhile, so that it cannot draw on them.
    """
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    kept = {} if helpers is None else dict(helpers.Gcf.figs)
    if helpers is not None:
        helpers.Gcf.figs.clear()
    try:
        yield
    finally:
        if "matplotlib.pyplot" in sys.modules:  # maybe not before
            sys.modules["matplotlib.pyplot"].close("all")
        if helpers is not None:
            helpers.Gcf.figs.update(kept)


@contextmanager
def _eager() -> Iterator[None]:
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch ≥ 2.6
    if set_stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with set_stance("force_eager"):
        yield


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` keep activations instead of computing them again.

    A recomputation runs in the middle of each product, outside of everything that the step needs
    (precision, frozen generators), and the reentrant form has no second derivative. Both forms look
    up what they use in their module, so that exchanging it there reaches every caller.
    """
    replaced = {
        "CheckpointFunction": _PlainCall,
        "_checkpoint_without_reentrant_generator": _nothing_around,
    }
    before = {n: getattr(checkpoint, n) for n in replaced if hasattr(checkpoint, n)}
    try:
        for name in before:
            setattr(checkpoint, name, replaced[name])
        yield
    finally:
        for name, original in before.items():
            setattr(checkpoint, name, original)


class _PlainCall:
    @staticmethod
    def apply(function: Callable[..., object], preserve_rng_state: bool, *args: object) -> object:
        return function(*args)


def _nothing_around(*args: object, **kwargs: object) -> Iterator[None]:
    yield
