"""Manifests rendered by the real kustomize, and where their parts are."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from schemas import Document, Kind, load

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
SCHEMAS = Path(os.environ.get("CRD_SCHEMAS") or ROOT.parent / "shared/k8s/crd-schemas.json")
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(
    path.parent
    for path in (K8S / "components").glob("*/kustomization.yaml")
    if path.parent.name != "image"  # with_components adds it to all
)
_KUSTOMIZE_API = "kustomize.config.k8s.io/v1beta1"


def executable(name: str) -> str:
    """A tool of the test environment, which need not be active."""
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    assert found, f"{name} is not installed: see requirements-test.lock"
    return found


def known_kinds() -> dict[tuple[str, str], Kind]:
    """Custom resources whose schemas are at hand; none where the file is not."""
    return load(SCHEMAS) if SCHEMAS.is_file() else {}


def crd_kinds() -> dict[tuple[str, str], Kind]:
    """The same; the test is skipped where there are none."""
    if not SCHEMAS.is_file():
        pytest.skip(f"no CRD schemas: {SCHEMAS} is not there, and CRD_SCHEMAS names no other")
    return load(SCHEMAS)


@cache
def render(folder: Path) -> tuple[Document, ...]:
    """What `kubectl apply -k` would send."""
    answer = subprocess.run(
        [executable("kubectl"), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return tuple(document for document in yaml.safe_load_all(answer.stdout) if document)


@cache
def with_components(*names: str) -> tuple[Document, ...]:
    """The base with components, in this order, and the image last."""
    with tempfile.TemporaryDirectory() as folder:
        near = partial(os.path.relpath, start=os.path.realpath(folder))
        content = {
            "apiVersion": _KUSTOMIZE_API,
            "kind": "Kustomization",
            "resources": [near(K8S / "base")],
            "components": [near(K8S / "components" / name) for name in (*names, "image")],
        }
        path = Path(folder, "kustomization.yaml")
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return render(Path(folder))


def title(document: Document) -> str:
    """Kind and name, as kubectl writes them."""
    return f"{document['kind']}/{document['metadata'].get('name', '')}"


def of_kind(documents: tuple[Document, ...], *kinds: str) -> Iterator[Document]:
    """Those of some kinds."""
    return (document for document in documents if document["kind"] in kinds)


def at(document: Any, path: str, default: Any = None) -> Any:
    """What is at a dotted path, or the default where any part of it is missing."""
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return default
        document = document[name]
    return document
