"""The command line: ``hessrank``, or ``python -m lightning_hessrank``."""

from lightning_hessrank.cli.app import app

__all__ = ["app"]
