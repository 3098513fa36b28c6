"""Reads runs through TensorBoard's data provider: whatever it has loaded, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard import context as tb_context
from tensorboard.data.provider import DataProvider, RunTagFilter

from lightning_hessrank.dashboard.tab import scalars
from lightning_hessrank.dashboard.tab.records import ABOUT, DETAIL, PLUGIN, RECORD, Json, tag
from lightning_hessrank.dashboard.tab.series import (
    by_step,
    parse,
    parse_detail,
    parse_record,
    run_of,
)

#: More than any run has: TensorBoard has thinned what it keeps when it loaded it.
_ALL = 100_000
#: So many of the user's own scalars are offered to be drawn against.
_METRICS = 40


class Reader:
    """The runs of one experiment (TensorBoard's word for a log directory).

    Args:
        provider: of TensorBoard.
        context: of the request.
        experiment: its name; empty for a local directory.
    """

    def __init__(self, provider: DataProvider, context: Any = None, experiment: str = "") -> None:
        self._provider = provider
        self._asked: dict[str, Any] = {
            "ctx": context or tb_context.RequestContext(),
            "experiment_id": experiment,
        }
        self._ahead: dict[str, dict[str, Any]] = {}

    def overview(self) -> Json:
        """Return all runs with their records, and the names of those that the callback did not see.

        A run that cannot be read is named under ``broken``, and takes none of the others with it.
        """
        tags = self._tags("scalars", self._provider.list_scalars)
        written = self._tags(PLUGIN, self._provider.list_tensors)
        self._read_ahead(written)
        runs: list[Json] = []
        broken: list[Json] = []
        for run in sorted({*tags, *written}):
            try:
                runs += self._runs_in(run, tags.get(run, []), written.get(run, []))
            except Exception as error:  # of a foreign file, whatever it may be
                broken.append({"run": run, "reason": f"{type(error).__name__}: {error}"})
        with_callback = {x["run"] for x in [*runs, *broken]}
        return {
            "runs": runs,
            "others": sorted({*tags, *written} - with_callback),
            "broken": broken,
        }

    def runs_with_details(self) -> list[Json]:
        """Return all runs with everything that there is of them."""
        return [{**x, **self.details(x["run"], x["name"])} for x in self.overview()["runs"]]

    def details(self, run: str, name: str) -> Json:
        """Return the spectra and layers of one run, ``{"layers": [...], "details": [...]}``."""
        found = self._texts(run, [tag(name, DETAIL), tag(name, ABOUT)])
        known = found.get(tag(name, ABOUT), [])
        facts = parse(known[-1]) if known else None
        details = by_step(map(parse_detail, found.get(tag(name, DETAIL), [])))
        if facts is None and not details:
            points = self._points(
                run, [t for t in self._scalar_tags(run) if scalars.is_of(t, name)]
            )
            table, details = scalars.layers(points, name)
            return {"about": {"layers": table}, "details": details}
        return {"about": facts or {}, "details": details}

    def _runs_in(self, run: str, tags: list[str], written: list[str]) -> list[Json]:
        """Put together what each monitor of a run has written."""
        end = tag("", RECORD)
        new = [t.removesuffix(end) for t in written if t.endswith(end)]
        names = [*sorted(new), *(n for n in scalars.monitors(tags) if n not in new)]
        if not names:
            return []
        own = [t for t in tags if not any(scalars.is_of(t, name) for name in names)]
        metrics = self._last(run, own[:_METRICS])
        return [
            self._new(run, name, metrics) if name in new else self._old(run, name, tags, metrics)
            for name in names
        ]

    def _new(self, run: str, name: str, metrics: Mapping[str, float]) -> Json:
        found = self._texts(run, [tag(name, RECORD), tag(name, ABOUT)])
        known = found.get(tag(name, ABOUT), [])
        facts = (parse(known[-1]) if known else None) or {}
        brief = {k: v for k, v in facts.items() if k != "layers"}  # of one run at a time
        records = by_step(map(parse_record, found.get(tag(name, RECORD), [])))
        return run_of(run, name, records, facts=brief, metrics=metrics)

    def _old(self, run: str, name: str, tags: list[str], metrics: Mapping[str, float]) -> Json:
        points = self._points(run, [t for t in tags if scalars.is_of(t, name)])
        text = f"{name}-text/bound/text_summary"
        said = self._texts(run, [text], plugin="text").get(text, [b""])[-1]
        records = scalars.records(points, name, _decoded(said))
        return run_of(run, name, records, metrics=metrics, old=True)

    # -- the data provider -----------------------------------------------------------------------

    def _tags(self, plugin: str, listing: Any) -> dict[str, list[str]]:
        listed = listing(plugin_name=plugin, **self._asked)
        return {run: list(tags) for run, tags in listed.items()}

    def _scalar_tags(self, run: str) -> list[str]:
        return self._tags("scalars", self._provider.list_scalars).get(run, [])

    def _texts(self, run: str, tags: Iterable[str], plugin: str = PLUGIN) -> dict[str, list[Any]]:
        """Texts by tag, in the order in which they were written."""
        wanted = list(tags)
        ahead = self._ahead.get(run, {}) if plugin == PLUGIN else {}
        found = {t: ahead[t] for t in wanted if t in ahead}
        left = [t for t in wanted if t not in ahead]
        if left:
            found |= self._tensors([run], left, plugin).get(run, {})
        return {
            tag: [_text(x.numpy) for x in sorted(data, key=lambda x: x.wall_time)]
            for tag, data in found.items()
        }

    def _read_ahead(self, written: Mapping[str, list[str]]) -> None:
        """Read the records of all runs at once: TensorBoard's data server answers call by call.

        Where that fails, each run is read for itself, so that it is known whose fault it is.
        """
        ends = (tag("", RECORD), tag("", ABOUT))
        tags = {t for own in written.values() for t in own if t.endswith(ends)}
        with suppress(Exception):
            self._ahead = self._tensors(list(written), tags, PLUGIN) if tags else {}

    def _tensors(
        self, runs: Iterable[str], tags: Iterable[str], plugin: str
    ) -> dict[str, dict[str, Any]]:
        found = self._provider.read_tensors(
            plugin_name=plugin,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=list(runs), tags=list(tags)),
            **self._asked,
        )
        return {run: dict(data) for run, data in found.items()}

    def _points(self, run: str, tags: Iterable[str]) -> dict[str, dict[int, float]]:
        found = self._provider.read_scalars(
            plugin_name="scalars", downsample=_ALL, run_tag_filter=_only(run, tags), **self._asked
        )
        return {t: {x.step: x.value for x in data} for t, data in found.get(run, {}).items()}

    def _last(self, run: str, tags: list[str]) -> dict[str, float]:
        if not tags:
            return {}
        found = self._provider.read_last_scalars(
            plugin_name="scalars", run_tag_filter=_only(run, tags), **self._asked
        )
        return {t: float(x.value) for t, x in found.get(run, {}).items() if x is not None}


def reader_of_folder(folder: str | Path) -> Reader:
    """Read the event files below a folder, as TensorBoard does, without a server."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer(
        tensor_size_guidance={PLUGIN: 0, "scalars": 0}, purge_orphaned_data=True
    )
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return Reader(MultiplexerDataProvider(multiplexer, str(folder)))


def runs_of_folders(folders: Iterable[str | Path]) -> tuple[list[Json], list[Json]]:
    """Read all runs below these folders, with their details.

    Returns:
        The runs, and those that cannot be read with the reason why.
    """
    runs: list[Json] = []
    broken: list[Json] = []
    chosen = [Path(folder) for folder in folders]
    for folder in chosen:
        reader = reader_of_folder(folder)
        found = reader.overview()
        broken += found["broken"]
        for run in found["runs"]:
            details = reader.details(run["run"], run["name"])
            name = run["run"] if len(chosen) == 1 else _named(folder, run["run"])
            runs.append({**run, **details, "run": folder.resolve().name if name == "." else name})
    return runs, broken


def _named(folder: Path, run: str) -> str:
    """Tell runs of several folders apart."""
    return str(folder if run == "." else folder / run)


def _only(run: str, tags: Iterable[str]) -> RunTagFilter:
    return RunTagFilter(runs=[run], tags=list(tags))


def _text(array: Any) -> Any:
    """The text in a tensor of one string (of none: nothing that can be parsed)."""
    return array.item() if array.size == 1 else None


def _decoded(text: Any) -> str:
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
