"""What one measurement is to the tab: small, plain, and the same in event files and reports.

Three kinds of JSON text, each under a tag of its own:

* a *record*: the numbers that curves and tables need, half a kilobyte; the tab reads all of them;
* a *detail*: the spectrum in some two hundred numbers and the ranks of the layers, a few kilobytes
  at any number of parameters; the tab reads those of one run at a time;
* *about*: what does not change from one measurement to the next, written when it is new.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lightning_hessrank.results import Measurement

#: Name of the plugin: in event files, in TensorBoard's addresses, and after ``#`` in a link.
PLUGIN = "hessian"
RECORD, DETAIL, ABOUT = "record", "detail", "about"
#: Ends of the tags, after the monitor's name.
TAG = "{name}-tab/{kind}"
#: The label of machine precision among the tolerances.
MACHINE = "machine"

#: Histogram bins per decade of |λ|, on a grid that is the same at every step.
BINS_PER_DECADE = 4
#: Eigenvalues so many decades below the largest are counted together.
DECADES = 20
#: Points of the thinned curve of sorted |λ|.
_EVEN, _FIRST = 110, 50
#: Significant digits of what is drawn, and of counts that are estimates.
_DRAWN_DIGITS, _DIGITS = 4, 7

Json = dict[str, Any]


def tag(name: str, kind: str) -> str:
    """Tag of a kind of text for the monitor of this name (with the logger's prefix)."""
    return TAG.format(name=name, kind=kind)


def dumps(value: Any) -> str:
    """Encode without spaces; nan and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except ValueError:
        return dumps(_plain(value))


def tolerance_label(rtol: float) -> str:
    """``0.001`` -> ``"1e-3"``, ``0.025`` -> ``"2.5e-2"``."""
    mantissa, exponent = f"{rtol:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def compact(record: Mapping[str, Any], counts: Mapping[str, float] | None = None) -> Json:
    """Return a record of ``monitor.history`` as JSON can hold it, without its layers.

    Args:
        record: one of ``monitor.history``; unknown entries are kept.
        counts: by label of the tolerance; ``None``: those of the record.
    """
    apart = ("layers", "block_norms", "counts", "ranges")
    found = {k: v for k, v in record.items() if k not in apart}
    found["counts"] = counts if counts is not None else _labelled(record.get("counts", {}), record)
    if record.get("ranges"):
        found["ranges"] = _labelled(record["ranges"], record)
    if record.get("gap") == math.inf:  # of full rank: null is "unknown"
        found["gap"] = "inf"
    return {k: v for k, v in _plain(found).items() if v is not None}


def detail(
    record: Mapping[str, Any], eigenvalues: npt.NDArray[np.float64] | None = None
) -> Json | None:
    """Return the spectrum and the layers' ranks, in the order of :func:`layer_table`.

    ``None`` where there is neither.
    """
    found: Json = {}
    if eigenvalues is not None and len(eigenvalues) and np.isfinite(eigenvalues).all():
        found["spectrum"] = sketch(eigenvalues, record["tolerance"])
    if record.get("layers"):
        found["layers"] = [_plain(layer["rank"]) for layer in record["layers"].values()]
    return {"step": record["step"], **found} if found else None


def layer_table(record: Mapping[str, Any]) -> list[list[Any]]:
    """Name, parameters and bound (or ``None``) of each layer."""
    layers = record.get("layers") or {}
    return [[name, x["num_parameters"], x["bound"]] for name, x in layers.items()]


def about(record: Mapping[str, Any], bounds: Mapping[str, Mapping[str, Any]] | None = None) -> Json:
    """Return what is the same at all measurements of a run.

    Args:
        record: of one of them.
        bounds: ``RankBound.to_dict()`` by what it is: ``"bound"``, ``"batch_bound"``.
    """
    found: Json = {"versions": versions(), "layers": layer_table(record)}
    for what, bound in (bounds or {}).items():
        found[what] = _plain(bound)
    return found


def texts_of(
    measurement: Measurement, counts: Mapping[str, float] | None = None
) -> dict[str, Json]:
    """Return all that the tab needs of a measurement, by kind of text.

    Args:
        measurement: what was found.
        counts: of the total rank, by label of the tolerance; ``None``: those of its record.
    """
    record = measurement.record()
    values = measurement.total.eigenvalues
    bounds = {"bound": measurement.bound, "batch_bound": measurement.batch_bound}
    found = {
        RECORD: compact(record, counts),
        DETAIL: detail(record, None if values is None else values.cpu().numpy()),
        ABOUT: about(record, {k: v.to_dict() for k, v in bounds.items() if v is not None}),
    }
    return {kind: text for kind, text in found.items() if text is not None}


def versions() -> dict[str, str]:
    """Versions of the packages behind the numbers."""
    found = {}
    for package in ("lightning-hessrank", "torch", "pytorch-lightning", "lightning", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sketch(eigenvalues: npt.NDArray[np.float64], tolerance: float) -> Json:
    """Return a spectrum of any size in about two hundred numbers.

    Args:
        eigenvalues: shape ``(p,)``, in any order, finite.
        tolerance: absolute; the curve is not thinned where it crosses it.

    Returns:
        ``bins``: the exponent, in quarters of a decade, at which the first bin of ``positive`` and
        ``negative`` begins (both count eigenvalues by size); ``below``: how many are smaller than
        that, or zero; ``at`` and ``values``: positions (from 1) in the order of falling size, and
        the signed eigenvalues there.
    """
    size = np.abs(eigenvalues)
    order = np.argsort(-size, kind="stable")
    ordered = eigenvalues[order]
    points = curve_points(len(ordered), int((size > tolerance).sum()))
    found: Json = {
        "at": (points + 1).tolist(),
        "values": [_rounded(float(x), _DRAWN_DIGITS) for x in ordered[points]],
    }
    largest = float(size[order[0]])
    if largest == 0.0:
        return {**found, "bins": 0, "positive": [], "negative": [], "below": len(size)}
    last = math.floor(math.log10(largest) * BINS_PER_DECADE)
    first = last - DECADES * BINS_PER_DECADE + 1
    with np.errstate(divide="ignore"):
        bins = np.floor(np.log10(size) * BINS_PER_DECADE)
    counted = bins >= first
    for sign, name in ((1, "positive"), (-1, "negative")):
        chosen = bins[counted & (np.sign(eigenvalues) == sign)].astype(int) - first
        found[name] = np.bincount(np.minimum(chosen, last - first), minlength=1).tolist()
    return {**found, "bins": first, "below": int((~counted).sum())}


def curve_points(
    count: int, rank: int, *, even: int = _EVEN, first: int = _FIRST
) -> npt.NDArray[np.int64]:
    """Positions of a falling curve to keep, where it begins and is cut more closely.

    Args:
        count: length of the curve.
        rank: where it is cut; both sides are kept.
        even: so many are evenly spread.
        first: so many are spread by ratio.
    """
    spread = [np.linspace(0, count - 1, even), np.geomspace(1, count, first) - 1]
    kept = np.concatenate([*spread, [rank - 1, rank]]).round().astype(np.int64)
    return np.unique(kept.clip(0, count - 1))


def _labelled(values: Mapping[float, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Give tolerances their labels; one at or below machine precision is the machine's."""
    machine = record["num_parameters"] * float(np.finfo(np.float64).eps) * (1 + 1e-9)
    found = {tolerance_label(t) if t > machine else MACHINE: v for t, v in values.items()}
    if record["rtol"] <= machine and MACHINE not in found and isinstance(record["rank"], int):
        found[MACHINE] = record["rank"]
    return found


def _plain(value: Any) -> Any:
    """Turn mappings, sequences and numbers into what JSON has; nan and infinity into null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if isinstance(value, float):
        return _rounded(value, _DIGITS) if math.isfinite(value) else None
    return value


def _rounded(value: float, digits: int) -> float | int:
    short = float(f"{value:.{digits - 1}e}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
