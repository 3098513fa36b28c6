"""Test files mirror source files, one to one."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES, TESTS = ROOT / "lightning_hessrank", ROOT / "tests"
#: Folders of tests without one source, and why they have none.
CROSSING = {
    "system": "what many sources do together",
    "benchmarks": "speed and memory",
    "paper": "the scripts of examples/paper",
}
#: Sources without a test file of their own, and where they are tested.
ELSEWHERE = {
    # Steps on the way to a bound: only the bound has an oracle.
    "bounds/operations.py": "bounds/test_surrogate.py",
    "bounds/sampling.py": "system/test_sweep.py",
    "bounds/slices.py": "bounds/test_patch.py",
    "bounds/spans.py": "bounds/test_patch.py",
    "bounds/trace.py": "bounds/test_surrogate.py",
    "bounds/columns.py": "bounds/test_batch.py",
    "bounds/cuts.py": "bounds/test_symmetries.py",
    "bounds/live.py": "bounds/test_batch.py",
    "bounds/live_bound.py": "bounds/test_symmetries.py",
    # Steps on the way to a dense matrix, compared with `torch.func` there.
    "hessian/blocks.py": "hessian/test_samples.py",
    "hessian/gram.py": "hessian/test_factor.py",
    "hessian/graph.py": "hessian/test_curvature.py",
    # One object seen in two files.
    "network/operator.py": "network/test_toeplitz.py",
    "estimators/core.py": "estimators/test_sketch.py",
    "estimators/search.py": "estimators/test_lanczos.py",
    # Behind the door that they were made for.
    "cli/family.py": "cli/test_sweep.py",
    "dashboard/figures/growth.py": "cli/test_sweep.py",
    "dashboard/pages.py": "system/test_dashboard.py",
    "dashboard/tab/assets.py": "dashboard/tab/test_plugin.py",
    "cli/history.py": "cli/test_measure.py",
    "cli/offline.py": "cli/test_measure.py",
    "monitor/bounds.py": "monitor/test_run.py",
    "estimators/registry.py": "system/test_extending.py",
    "monitor/log.py": "monitor/test_run.py",
    "monitor/form.py": "monitor/test_checks.py",
    "hessian/moving.py": "hessian/test_verify.py",
    "subject/prefix.py": "subject/test_cutting.py",
    "subject/protection.py": "subject/test_comparison.py",
    # Seen in several processes together.
    "sharded/fsdp.py": "sharded/test_live.py",
    "monitor/sharding.py": "sharded/test_live.py",
    "opening.py": "hessian/test_verify.py",
    "sums.py": "test_metrics.py",
}


def expected(source: Path) -> Path:
    """Where the tests of a source file are."""
    return source.relative_to(SOURCES).with_name(f"test_{source.name}")


MIRRORED = {
    expected(path): path.relative_to(SOURCES).as_posix()
    for path in SOURCES.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}


@pytest.mark.parametrize("test", MIRRORED, ids=str)
def test_every_source_has_its_tests(test: Path) -> None:
    assert (TESTS / test).exists() is (MIRRORED[test] not in ELSEWHERE)


def test_every_test_file_has_its_source() -> None:
    found = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {path for path in found if path.parts[0] not in CROSSING} <= set(MIRRORED)


def test_what_is_tested_elsewhere_exists() -> None:
    assert set(ELSEWHERE) <= set(MIRRORED.values())
    assert all((TESTS / place).exists() for place in ELSEWHERE.values())


def test_helpers_are_no_tests() -> None:
    """Tests import helpers, never each other."""
    for path in TESTS.rglob("test_*.py"):
        lines = path.read_text("utf-8").splitlines()
        names = [x.split()[1] for x in lines if x.startswith(("from tests", "import tests"))]
        assert not [x for x in names if x.rpartition(".")[2].startswith("test_")], path
