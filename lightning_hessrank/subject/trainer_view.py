"""What a shadow sees of the run: a trainer that can be read, and logging that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_hessrank.subject.duplicate import SILENCE


class ManualOptimizationError(RuntimeError):
    """The step drives the optimiser itself, so that it is not a loss function."""


class ReadOnly:
    """Shows an object of the run, and refuses to change it.

    Args:
        viewed: the object.
        refused: names of methods that would change it.
    """

    def __init__(self, viewed: Any, refused: tuple[str, ...] = ()) -> None:
        object.__setattr__(self, "_viewed", viewed)
        object.__setattr__(self, "_refused", refused)

    def __getattr__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "_refused"):
            return refuse_manual_optimization
        value = getattr(object.__getattribute__(self, "_viewed"), name)
        return dict(value) if isinstance(value, Mapping) else value

    def __setattr__(self, name: str, value: Any) -> None:
        viewed = type(object.__getattribute__(self, "_viewed")).__name__
        raise AttributeError(
            f"the step sets {viewed}.{name}, which a measurement must not do; pass loss_fn=... to "
            "the monitor (loss_fn(module, batch) -> scalar loss)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnly:
        return self


class TrainerView(ReadOnly):
    """Reads a trainer and never changes it; its loggers swallow everything.

    The module that it trains is the copy, from which the view is looked at.
    """

    def __init__(self, viewed: Any) -> None:
        super().__init__(viewed)
        object.__setattr__(self, "_module", None)

    def show(self, module: Any) -> None:
        """Let this module be the one that is trained."""
        object.__setattr__(self, "_module", module)

    def __getattr__(self, name: str) -> Any:
        if name in ("logger", "loggers"):
            return SILENCE if name == "logger" else [SILENCE]
        module = object.__getattribute__(self, "_module")
        if module is not None and name in ("model", "lightning_module"):
            return module
        value = super().__getattr__(name)
        if name == "strategy":
            value = TrainerView(value)
            value.show(module)
        return value


_OPTIMIZER_METHODS = ("step", "zero_grad", "load_state_dict", "add_param_group", "toggle_model")
_SILENT = ("log", "log_dict", "print")
_MANUAL = ("manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")
# What `fit(torch.compile(module))` leaves on the instance: methods bound to the live module.
_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def detach_from_trainer(part: Any, trainer: TrainerView | None) -> None:
    """Give a copied ``LightningModule`` a read-only trainer and logging that does nothing.

    Args:
        part: the copy; its instance attributes are replaced.
        trainer: what it may read, or ``None``.
    """
    own = vars(part)
    own["_trainer"] = trainer
    for name in _SILENT:
        own[name] = _nothing
    for name in _MANUAL:
        own[name] = refuse_manual_optimization
    if trainer is not None:
        for name in ("optimizers", "lr_schedulers"):
            own[name] = _viewing(part, name)
    if own.pop("_compiler_ctx", None) is not None:
        for name in _COMPILED:
            own.pop(name, None)


def _viewing(part: Any, name: str) -> Any:
    original = getattr(type(part), name)

    def read(*args: Any, **kwargs: Any) -> Any:
        found = original(part, *args, **kwargs)
        if isinstance(found, list):
            return [ReadOnly(x, _OPTIMIZER_METHODS) for x in found]
        return None if found is None else ReadOnly(found, _OPTIMIZER_METHODS)

    return read


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def refuse_manual_optimization(*args: object, **kwargs: object) -> None:
    """Raise :class:`ManualOptimizationError`."""
    raise ManualOptimizationError(
        "training_step drives the optimiser by hand (manual optimisation), so it is not a loss "
        "function; pass loss_fn=... to the monitor: loss_fn(module, batch) -> scalar loss"
    )
