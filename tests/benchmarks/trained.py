"""The top of the spectrum of trained networks, beside ``eigsh`` over curvlinops.

``python -m tests.benchmarks.trained`` trains LeNet-5 and a CIFAR CNN on enlarged digits for some
hundred steps, then measures on one thread, in CPU seconds: how long it takes to certify the count
at 1e-1 and 1e-2, the whole outer spectrum, and what curvlinops and scipy's ``eigsh`` take for the
ten eigenvalues of largest magnitude (without a certificate that these are all beyond a cut).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from lightning_hessrank.estimators import lanczos_rank, smaller_rank
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.results import RankEstimate
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from tests.benchmarks.engine import machine, table
from tests.benchmarks.networks import cifar_cnn, images, lenet5
from tests.benchmarks.peers import PEERS

#: network -> (how it is built, size and channels of its images, samples that are measured)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], int]] = {
    "LeNet-5": (lenet5, (28, 1), 64),
    "CIFAR CNN": (cifar_cnn, (32, 3), 32),
}
TOP = 10


@dataclass(frozen=True)
class Found:
    """What was found, at which cost."""

    seconds: float
    products: int
    result: str
    eigenvalues: Tensor | None = None


def trained(name: str, steps: int = 300) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after so many steps of Adam on batches of 128, and the samples to measure on."""
    build, shape, samples = NETWORKS[name]
    torch.manual_seed(0)
    net, (x, y) = build(), images(*shape).tensors
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,))
        optimiser.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        optimiser.step()
    return net.eval(), x[:samples], y[:samples]


def certified(subject: Subject, rtol: float) -> Found:
    """The exact count at a tolerance, from float32 products and a float64 basis.

    With two probes, which reach the top of the spectrum soonest and say least of the rest.
    """
    single = subject.in_precision(torch.float32)
    operator = LossCurvature(single.loss_function()).operator()
    start = time.process_time()
    estimate = lanczos_rank(operator, rtol=rtol, num_probes=2, max_products=1000)
    exact = not estimate.std_error
    text = f"{estimate.rank:.0f}" + ("" if exact else f" ± {2 * estimate.std_error:.0f}")
    return Found(time.process_time() - start, estimate.num_products, text)


def outer(subject: Subject) -> Found:
    """The outer part's whole spectrum, from its smaller matrix in float64."""
    start = time.process_time()
    curvature = LossCurvature(subject.loss_function())
    estimate: RankEstimate | None = smaller_rank(curvature.operator("outer"), part="outer")
    assert estimate is not None
    return Found(time.process_time() - start, estimate.num_products, f"{estimate.rank}")


def eigsh_of(net: nn.Module, x: Tensor, y: Tensor) -> Found:
    """The ten eigenvalues of largest magnitude by curvlinops' products, as its guide does."""
    multiply = PEERS["curvlinops"](net, nn.CrossEntropyLoss(), x, y)
    count, p = 0, sum(w.numel() for w in net.parameters())

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        column = torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(-1, 1))
        return multiply(column).numpy().ravel()

    start = time.process_time()
    operator = LinearOperator((p, p), matvec=product, dtype=np.float32)
    values = eigsh(operator, TOP, which="LM", return_eigenvectors=False, tol=1e-3)
    seconds = time.process_time() - start
    values = torch.from_numpy(np.sort(np.abs(values))[::-1].copy())
    return Found(seconds, count, f"top {TOP}", values)


def rows_of(name: str) -> Iterator[tuple[str, ...]]:
    """Rows of the table for one network."""
    net, x, y = trained(name)
    subject = Subject(net, [(x, y)], model_step(F.cross_entropy))
    work: dict[str, Callable[[], Found]] = {
        "certified beyond 1e-1": lambda: certified(subject, 1e-1),
        "certified beyond 1e-2": lambda: certified(subject, 1e-2),
        "outer spectrum": lambda: outer(subject),
    }
    peer = None
    if "curvlinops" in PEERS:
        peer = eigsh_of(net, x, y)
        yield (name, f"eigsh, {peer.result}", "", f"{peer.products}", f"{peer.seconds:.2f}", "")
        assert peer.eigenvalues is not None
        share = float(peer.eigenvalues[-1] / peer.eigenvalues[0]) * 0.999
        work = {
            f"certified beyond the tenth ({share:.2g})": lambda: certified(subject, share)
        } | work
    for what, find in work.items():
        found = find()
        ratio = "" if peer is None else f"{found.seconds / peer.seconds:.2f}"
        yield (name, what, found.result, f"{found.products}", f"{found.seconds:.2f}", ratio)
    subject.release()


def main() -> None:
    """Print the table, each row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), "\n")
    rows: list[tuple[str, ...]] = [("network", "what", "result", "products", "CPU s", "of eigsh")]
    for name in arguments.names:
        for row in rows_of(name):
            print(*row, sep=", ", flush=True)
            rows.append(row)
    print()
    table(rows)


if __name__ == "__main__":
    main()
