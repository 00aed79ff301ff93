"""The import rules of docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "trainers": {"ray", "cluster", "workflows"},
    "cluster": {"torch", "transformers", "deepspeed", "trainers", "workflows"},
    "workflows": {"ray", "torch", "deepspeed"},
}
HEAVY = {"ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "matplotlib", "sklearn"}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_what_its_room_may_know(package: str) -> None:
    modules = sorted((ROOT / package).glob("**/*.py"))
    assert modules
    wrong = {m.name: sorted(bad) for m in modules if (bad := imported(m) & FORBIDDEN[package])}
    assert wrong == {}


def test_only_the_engine_and_its_setup_import_deepspeed() -> None:
    users = {
        path.name for path in (ROOT / "trainers").glob("*.py") if "deepspeed" in imported(path)
    }
    assert users == {"deepspeed_engine.py", "deepspeed_setup.py"}


@pytest.mark.parametrize(
    "module",
    [
        "workflows.cli",
        "workflows.session",
        "workflows.config",
        "workflows.explain",
        "workflows.adoption",
        "workflows.garbage",
        "workflows.custom",
        "workflows.corpora",
        "workflows.tokenizing",
        "workflows.pretraining",
        "workflows.branch",
        "cluster.config",
    ],
)
def test_what_answers_at_once_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(answer.stdout.split()) & HEAVY == set()


def test_no_module_is_longer_than_400_lines() -> None:
    long = [
        path.name
        for package in FORBIDDEN
        for path in (ROOT / package).glob("**/*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
    ]
    assert long == []
