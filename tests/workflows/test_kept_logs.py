"""Logs of a step's processes, from every node into an object store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.interface import Capacity, Outcome, TaskFailedError
from cluster.local import LocalCluster
from workflows import kept_logs
from workflows.storage import Storage

NAME, TARGET = "runs/nightly/pretrain", "runs/nightly/logs"


class TwoNodes(LocalCluster):
    """This process, and one with another cache; a third does not answer."""

    def __init__(self, caches: dict[str, Path], patch: pytest.MonkeyPatch) -> None:
        self._caches, self._patch = caches, patch

    def capacity(self) -> Capacity:
        return Capacity.of((1, 0), (1, 0), (1, 0))

    def on_every_node(
        self, function: Callable[..., Any], *args: Any, **_: Any
    ) -> dict[str, Outcome]:
        found = {"third": Outcome(error=TaskFailedError("WorkerLostError", "silent"))}
        for name, cache in self._caches.items():
            with self._patch.context() as patch:
                patch.setenv("PRETUNE_CACHE", str(cache))
                found[name] = Outcome(value=function(*args))
        return found


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    """Two nodes that logged under the same names, of which this process is on the first."""
    caches = {name: tmp_path / name for name in ("first", "second")}
    for name, cache in caches.items():
        (cache / NAME).mkdir(parents=True)
        (cache / NAME / "pretrain.log").write_text(f"of the {name}")
    monkeypatch.setenv("PRETUNE_CACHE", str(caches["first"]))
    monkeypatch.setattr(kept_logs.socket, "gethostname", lambda: "host")
    return TwoNodes(caches, monkeypatch)


def test_logs_of_all_nodes_are_kept_apart(nodes: TwoNodes, remote: Storage) -> None:
    kept_logs.keep(remote, NAME, TARGET, nodes)
    found = {name: remote.read(f"{TARGET}/{name}") for name in remote.find(TARGET)}
    assert found == {"pretrain.log": b"of the first", "host/pretrain.log": b"of the second"}


def test_a_store_that_fails_fails_no_step(
    nodes: TwoNodes, remote: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = Storage.at(remote.root.replace("bucket", "nosuchbucket"))
    kept_logs.keep(nowhere, NAME, TARGET, nodes)
    assert f"logs of {NAME} stay where they are" in caplog.text
