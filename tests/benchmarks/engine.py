"""How fast the engine is, beside other packages: ``python -m tests.benchmarks.engine``.

Every comparison is made in one run, with the same network, data and dtype, and the answers are
compared before times are. Times are CPU seconds of one thread, so that other work on the machine
disturbs them little; with ``--threads 2`` they are wall seconds. Runs of the candidates take turns,
and ratios are medians of paired runs.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from lightning_hessrank import __version__
from lightning_hessrank.api import rank_bound
from lightning_hessrank.estimators import dense_parts, dense_rank, lanczos_rank, sketch_rank
from lightning_hessrank.hessian import DenseOperator, SymmetricOperator
from lightning_hessrank.hessian.dense import add_sampled
from lightning_hessrank.hessian.rewrite import CheaperDerivatives
from lightning_hessrank.tolerance import numerical_rank
from tests.benchmarks import records, subjects
from tests.benchmarks.peers import PEERS, Multiply
from tests.benchmarks.subjects import Subject

#: Names of the benchmarks begun so far.
_running = ["unnamed"]
#: Products from which the time of all is extrapolated.
SAMPLE = 200
#: Numbers of vectors multiplied at once.
BLOCKS = (1, 4, 16, 64)


def main() -> None:
    """Run the chosen benchmarks and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "only", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the tables into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine(), flush=True)
    for name in arguments.only or [n for n in BENCHMARKS if n != "sketch-whole"]:  # 5 minutes
        print(f"\n### {name}\n", flush=True)
        _running.append(name)
        BENCHMARKS[name](arguments.rounds)
        if arguments.json:
            records.write(arguments.json, machine(), __version__)


def machine() -> str:
    """Describe what the times were taken on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    threads = torch.get_num_threads()
    seconds = "one thread, CPU seconds" if threads == 1 else f"{threads} threads, wall seconds"
    return (
        f"{model}, {seconds}, torch {torch.__version__}, {platform.system()}; "
        f"peers: {', '.join(PEERS) or 'none installed'}"
    )


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of one thread, or wall seconds of several; and the result."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = work()
    return clock() - start, result


def columns(multiply: Multiply, subject: Subject, block: int, count: int | None = None) -> Tensor:
    """First columns of the matrix, from products with unit vectors."""
    dtype, size = subject.x.dtype, subject.size
    count = size if count is None else count
    parts = []
    for start in range(0, count, block):
        stop = min(start + block, count)
        unit = torch.zeros(size, stop - start, dtype=dtype)
        unit[start:stop].fill_diagonal_(1)
        parts.append(multiply(unit))
    return torch.cat(parts, dim=1)


def table(rows: list[tuple[str, ...]]) -> None:
    """Print rows as Markdown, and record them; the first is the header."""
    found = [list(row) for row in rows]
    records.TABLES.setdefault(_running[-1], []).append(found)
    print(records.markdown(found))


def exact_rank(build: Callable[[], Subject], rounds: int) -> dict[str, float]:
    """Exact rank in float64, whole job; returns the times' ratios to ours."""
    subject = build()
    times: dict[str, list[float]] = {}
    ours = None
    for _ in range(rounds):
        seconds, ours = timed(lambda: dense_rank(subject.curvature().operator()))
        times.setdefault("lightning-hessrank", []).append(seconds)
        for name, peer in PEERS.items():
            block = best_block(peer, subject) if name == "curvlinops" else 1
            multiply = peer(subject.net, subject.loss, subject.x, subject.y)
            seconds, rank = timed(lambda m=multiply, b=block: plain_rank(columns(m, subject, b)))
            times.setdefault(name, []).append(seconds)
            assert rank == ours.rank, (name, rank, ours.rank)
    base = times["lightning-hessrank"]
    ratios = {
        n: statistics.median(a / b for a, b in zip(t, base, strict=True)) for n, t in times.items()
    }
    rows = [("package", "seconds", "ratio")]
    rows += [(n, f"{statistics.median(t):.2f}", f"{ratios[n]:.2f}") for n, t in times.items()]
    table(rows)
    print(f"\np = {subject.size:,}, rank {ours.rank} by all ({rounds} rounds)")
    return ratios


def plain_rank(matrix: Tensor) -> int:
    """Rank as a user of another package would compute it from the matrix."""
    return numerical_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2)).rank


def best_block(peer: Callable[..., Multiply], subject: Subject) -> int:
    """Block size at which a peer is fastest for each product."""
    multiply = peer(subject.net, subject.loss, subject.x, subject.y)
    seconds = {b: timed(lambda b=b: columns(multiply, subject, b, 128))[0] for b in (1, 16, 64)}
    return min(seconds, key=seconds.__getitem__)


def three_parts(rounds: int) -> None:
    """What the callback measures: total, outer-product and functional part."""
    rows = [("network", "p", "total alone", "all three parts", "ratio")]
    for name, build in (("MLP", subjects.mlp), ("CNN", subjects.cnn)):
        pairs = []
        for _ in range(rounds):
            subject = build()
            alone = timed(lambda s=subject: dense_rank(s.curvature().operator()))[0]
            parts = timed(lambda s=subject: dense_parts(s.curvature().operators()))[0]
            pairs.append((alone, parts))
        a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
        rows.append((name, f"{subject.size:,}", f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"))
    table(rows)


def sketch(rounds: int, *, whole: bool = False) -> float:
    """Sketch against building the matrix product by product and all its eigenvalues.

    The latter is extrapolated from some products and a smaller matrix; ``whole``: not.
    """
    subject = subjects.linear_mlp()
    p = subject.size
    ratios, mine, other = [], [], []
    sample, n = (p, p) if whole else (SAMPLE, 4000)
    for _ in range(rounds):
        operator = subject.curvature().operator()
        seconds, estimate = timed(lambda op=operator: sketch_rank(op, max_rank=2016))
        counted = timed(lambda op=operator: sketch_rank(op, max_rank=2016, counts=True))[0]
        columns(operator.matmat, subject, 1, 2)
        spent, matrix = timed(lambda op=operator: columns(op.matmat, subject, 1, sample))
        if not whole:
            matrix = torch.randn(n, n, dtype=torch.float64)
        eigen, values = timed(lambda m=matrix: torch.linalg.eigvalsh(m))
        assert estimate.rank == 2016
        assert not whole or numerical_rank(values).rank == 2016
        mine.append(seconds)
        other.append(p / sample * spent + (p / n) ** 3 * eigen)
        ratios.append(other[-1] / seconds)
    how = "measured" if whole else f"from {sample} products and the eigenvalues of n = {n:,}"
    table(
        [
            ("linear MLP 128-96-96-4", "seconds", "ratio"),
            ("sketch, rank 2016", f"{statistics.median(mine):.1f}", "1"),
            ("the same with counts at 1e-1 … 1e-6", f"{counted:.1f}", f"{counted / seconds:.1f}"),
            (
                f"product by product + eigvalsh ({how})",
                f"{statistics.median(other):.0f}",
                f"{statistics.median(ratios):.0f}",
            ),
        ]
    )
    print(f"\np = {p:,}")
    return statistics.median(ratios)


def large_sketch(rounds: int) -> None:
    """A linear CNN whose dense matrix would take 80 GB or more: bound first, then the rank."""
    del rounds
    subject = subjects.linear_cnn()
    p = subject.size
    start = time.perf_counter()
    first, bound = timed(lambda: rank_bound(subject.net, subject.x, loss="mse", data=subject.x))
    seconds, estimate = timed(
        lambda: sketch_rank(
            subject.curvature().operator(), max_rank=bound.total, memory_limit=2**31
        )
    )
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {
        "p": f"{p:,}",
        "dense matrix": f"{8 * p * p / 1e9:.0f} GB",
        "bound": f"{bound.total}",
        "rank": f"{estimate.rank}",
        "gap": f"{estimate.gap:.1e}",
        "products": f"{estimate.num_products}",
        "bound, s": f"{first:.0f}",
        "rank, s": f"{seconds:.0f}",
        "both, wall s": f"{wall:.0f}",
        "peak memory": f"{peak:.2f} GiB",
    }
    table([tuple(found), tuple(found.values())])


def block_seconds(operator: SymmetricOperator, vectors: Tensor, rounds: int) -> float:
    """Median time of one product, in a block of these vectors."""
    operator.matmat(vectors)
    runs = [timed(lambda: operator.matmat(vectors))[0] for _ in range(rounds)]
    return statistics.median(runs) / vectors.shape[1]


def blocks(rounds: int) -> None:
    """Time of a product in blocks of several sizes, beside the block that is chosen."""
    rows = [("network", "chosen", *(f"{k} at once" for k in BLOCKS), "chosen / best")]
    for name in ("mlp", "cnn", "linear_mlp", "linear_cnn"):
        curvature = getattr(subjects, name)().curvature()
        operator = curvature.operator()
        vectors = torch.randn(operator.dim, max(BLOCKS), dtype=operator.dtype)
        chosen = block_seconds(operator, vectors[:, : operator.block_size], rounds)
        curvature.batching.enabled = True  # a block of one is chosen with a loop
        times = {k: block_seconds(operator, vectors[:, :k], rounds) for k in BLOCKS}
        each = [f"{1e3 * times[k]:.2f} ms" for k in BLOCKS]
        ratio = chosen / min(chosen, *times.values())
        rows.append((name, f"{operator.block_size}", *each, f"{ratio:.2f}"))
    table(rows)


def shortcuts(rounds: int) -> None:
    """What two shortcuts are worth: the same work with and without them."""
    rows = [("shortcut", "network", "without", "with", "ratio")]
    for name in ("mlp", "cnn"):
        operator = getattr(subjects, name)().curvature().operator()
        pair = []
        for patch in (lambda *_: frozenset(), add_sampled):
            with mock.patch("lightning_hessrank.hessian.dense.add_sampled", patch):
                operator.to_dense()
                runs = [timed(operator.to_dense)[0] for _ in range(rounds)]
            pair.append(statistics.median(runs))
        rows.append(("dense matrix by samples", name, *_pair(pair, "s", 1)))
    for name in ("cnn", "linear_cnn", "resnet20"):
        subject, operators = getattr(subjects, name)(), []
        for mode in (nullcontext, CheaperDerivatives):
            with mock.patch("lightning_hessrank.hessian.curvature.CheaperDerivatives", mode):
                operators.append(subject.curvature().operator())
        runs = [[single_product(o) for o in operators] for _ in range(3 * rounds + 1)][1:]
        pair = [statistics.median(times) for times in zip(*runs, strict=True)]
        rows.append(("calls rewritten: one product", name, *_pair(pair, "ms", 1e3)))
    table(rows)


def single_product(operator: SymmetricOperator) -> float:
    """Time of one product, in a block of the operator's size."""
    vectors = torch.randn(operator.dim, operator.block_size, dtype=operator.dtype)
    return timed(lambda: operator.matmat(vectors))[0] / operator.block_size


def _pair(seconds: list[float], unit: str, scale: float) -> tuple[str, str, str]:
    without, with_it = seconds
    return (
        f"{scale * without:.2f} {unit}",
        f"{scale * with_it:.2f} {unit}",
        f"{without / with_it:.2f}",
    )


def resnet(rounds: int) -> dict[str, float]:
    """One product in units of one gradient, ResNet-20, float32."""
    subject = subjects.resnet20()
    net, loss, x, y = subject.net, subject.loss, subject.x, subject.y
    parameters = list(net.parameters())
    operator = subject.curvature().operator()
    peers = {name: peer(net, loss, x, y) for name, peer in PEERS.items()}
    vectors = torch.randn(subject.size, 4, generator=torch.Generator().manual_seed(0))
    expected = operator.matmat(vectors)
    ratios: dict[str, list[float]] = {}

    def gradient() -> object:
        return torch.autograd.grad(loss(net(x), y), parameters)

    candidates: dict[str, Callable[[], Tensor]] = {
        "lightning-hessrank, one": lambda: operator.matmat(vectors[:, :1]),
        "lightning-hessrank, four at once": lambda: operator.matmat(vectors),
    }
    candidates |= {n: lambda m=m: m(vectors[:, :1]) for n, m in peers.items()}
    for work in (gradient, *candidates.values()):
        work()
    for _ in range(3 * rounds):
        unit = timed(gradient)[0]
        for name, work in candidates.items():
            seconds, product = timed(work)
            k = product.shape[1]
            error = (product - expected[:, :k]).abs().max() / expected.abs().max()
            assert float(error) < 1e-3, (name, float(error))
            ratios.setdefault(name, []).append(seconds / k / unit)
    medians = {n: statistics.median(r) for n, r in ratios.items()}
    table(
        [
            ("one product of ResNet-20, 64 samples", "gradients"),
            *((n, f"{r:.2f}") for n, r in medians.items()),
        ]
    )
    return medians


def coverage(rounds: int, estimates: int = 100) -> dict[float, tuple[int, float]]:
    """Share of 95 % intervals that cover the dense count, on a trained CNN."""
    del rounds
    matrix = subjects.cnn(train=8).curvature().operator().to_dense()
    operator = DenseOperator(matrix)
    dense = dense_rank(operator)
    rows = [("rtol", "dense count", "covered", "median half-width", "products")]
    found = {}
    for rtol in (1e-1, 1e-2, 1e-3):
        exact = dense.rank_at(rtol)
        runs = [lanczos_rank(operator, rtol=rtol, seed=s) for s in range(estimates)]
        inside = sum(low <= exact <= high for low, high in (r.interval for r in runs))
        width = statistics.median((r.interval[1] - r.interval[0]) / 2 for r in runs)
        products = statistics.median(r.num_products for r in runs)
        rows.append(
            (
                f"{rtol:.0e}",
                f"{exact}",
                f"{inside} of {estimates}",
                f"{width:.3g}",
                f"{products:.0f}",
            )
        )
        found[rtol] = (inside, width / max(1.0, 0.1 * exact))
    table(rows)
    return found


def growth(rounds: int) -> None:
    """Time against p: dense of MLPs with ReLU, sketch of linear ones; fitted slopes."""
    del rounds
    dense, sketched = [], []
    dense_rank(subjects.mlp((64, 16, 16, 10)).curvature().operator())  # the first run is slower
    for width in (16, 24, 36, 54):
        subject = subjects.mlp((64, width, width, 10))
        seconds = timed(lambda s=subject: dense_rank(s.curvature().operator()))[0]
        dense.append((subject.size, seconds))
    for width in (32, 48, 72, 108):
        subject = subjects.linear_mlp((width, width, width, 4))
        bound = 20 * width - 32  # closed form, four outputs
        operator = subject.curvature().operator()
        seconds = timed(lambda o=operator, b=bound: sketch_rank(o, max_rank=b))[0]
        sketched.append((subject.size, seconds))
    curves = {"dense, ReLU": dense, "sketch, linear": sketched}
    slopes = {name: _slope(points) for name, points in curves.items()}
    rows = [("method", "p: seconds", "slope")]
    for name, points in curves.items():
        times = ", ".join(f"{p:,}: {t:.2f}" for p, t in points)
        rows.append((name, times, f"{slopes[name]:.2f}"))
    table(rows)
    _plot(curves, slopes, Path("growth.png"))


def _slope(points: list[tuple[int, float]]) -> float:
    """Exponent of a power of p, fitted by least squares."""
    p, t = torch.tensor(points, dtype=torch.float64).log().T
    p, t = p - p.mean(), t - t.mean()
    return float((p * t).sum() / (p**2).sum())


def _plot(curves: dict[str, list[tuple[int, float]]], slopes: dict[str, float], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    axes = Figure(figsize=(4.2, 2.9), dpi=160, layout="constrained").add_subplot()
    for (name, points), marker in zip(curves.items(), "os", strict=True):
        p, t = torch.tensor(points, dtype=torch.float64).T
        label = f"{name}: $p^{{{slopes[name]:.1f}}}$"
        (line,) = axes.loglog(p, t, marker, label=label)
        fit = (p / p.log().mean().exp()) ** slopes[name] * t.log().mean().exp()
        axes.plot(p, fit, color=line.get_color(), linewidth=1)
    axes.set_xticks([1_500, 3_000, 6_000, 12_000, 24_000])
    axes.set_xticklabels(["1,500", "3,000", "6,000", "12,000", "24,000"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="parameters", ylabel="seconds", title="Exact rank")
    axes.legend()
    axes.figure.savefig(path)
    print(f"\nplot: {path}")


BENCHMARKS: dict[str, Callable[[int], object]] = {
    "mlp": lambda rounds: exact_rank(subjects.mlp, rounds),
    "mlp-dense": lambda rounds: exact_rank(subjects.mlp_dense, rounds),
    "cnn": lambda rounds: exact_rank(subjects.cnn, rounds),
    "parts": three_parts,
    "sketch": sketch,
    "sketch-whole": lambda rounds: sketch(min(rounds, 1), whole=True),
    "large-sketch": large_sketch,
    "blocks": blocks,
    "shortcuts": shortcuts,
    "resnet": resnet,
    "coverage": coverage,
    "growth": growth,
}

if __name__ == "__main__":
    main()
