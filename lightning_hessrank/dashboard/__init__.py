"""What people see: tags, layout, figures, text, and the loggers they are written to."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hessrank.dashboard.board import Dashboard
    from lightning_hessrank.dashboard.link import dashboard_url
    from lightning_hessrank.dashboard.tags import scalars

__all__ = ["Dashboard", "dashboard_url", "scalars"]

_HOMES = {"Dashboard": "board", "dashboard_url": "link", "scalars": "tags"}


def __getattr__(name: str) -> Any:
    """Import on first use: the tab below this folder is loaded by TensorBoard, without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
