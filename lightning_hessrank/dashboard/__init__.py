"""What people see: tags, layout, figures, text, and the loggers they are written to."""

from lightning_hessrank.dashboard.board import Dashboard
from lightning_hessrank.dashboard.link import dashboard_url
from lightning_hessrank.dashboard.tags import scalars

__all__ = ["Dashboard", "dashboard_url", "scalars"]
