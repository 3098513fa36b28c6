"""Context managers that leave a process as they found it: generators, modes and global flags."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


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
def differentiable_twice(dtype: torch.dtype) -> Iterator[None]:
    """Set the global flags under which a step can be differentiated twice, in ``dtype``.

    Gradients on, inference mode and autocast off, ``dtype`` as the default for new tensors (a
    constant made inside the step must not pull the loss down to float32), compiled functions run
    eagerly, attention by the math kernel (the fused kernels have no second derivative).
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_eager())
        try:
            torch.set_default_dtype(dtype)
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def _eager() -> Iterator[None]:
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch ≥ 2.6
    if set_stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with set_stance("force_eager"):
        yield
