"""``python -m lightning_hessrank``: the same as the console script ``hessrank``."""

from lightning_hessrank.cli import app

if __name__ == "__main__":
    app(prog_name="hessrank")
