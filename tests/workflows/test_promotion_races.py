"""Many processes add and promote versions at once: the history stays one line."""

import contextlib
import itertools
import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Barrier

import pytest

from workflows.models import ChampionChangedError, ModelStore
from workflows.storage import Storage

NAME = "tiny.tone"
PROCESSES, ROUNDS = 8, 20
PATIENCE_S = 300.0


def challenge(root: str, folder: Path, number: int, barrier: Barrier, wins: "Queue[int]") -> None:
    """Add a version, then try to make it the champion, round by round, as all others do."""
    store = ModelStore(Storage.at(root))
    version = store.add(
        NAME, folder, fingerprint="f", attempt=f"attempt-{number}", task={}, scores={}
    )
    for _ in range(ROUNDS):
        barrier.wait(PATIENCE_S)
        champion = store.champion(NAME)
        barrier.wait(PATIENCE_S)
        with contextlib.suppress(ChampionChangedError):
            store.promote(version, expected=champion, reason=f"of {number}", run="run")
            if version != champion:
                wins.put(number)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "remote"])
def test_of_many_processes_one_wins_each_round(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    storage: Storage = request.getfixturevalue(place)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=challenge, args=(storage.root, folder, number, barrier, wins))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert wins.qsize() == ROUNDS  # each round somebody won, and nobody else believes so

    store = ModelStore(storage)
    versions = store.versions(NAME)
    assert [version.number for version in versions] == list(range(1, PROCESSES + 1))
    attempts = {store.facts(version)["attempt"] for version in versions}
    assert len(attempts) == PROCESSES  # none lost, none doubled
    entries = store.log(NAME)
    assert len(entries) == ROUNDS
    champions = [None, *(entry["version"] for entry in entries)]
    assert [entry["previous"] for entry in entries] == champions[:-1]
    assert all(one != other for one, other in itertools.pairwise(champions))
    assert store.champion(NAME) == versions[champions[-1] - 1]
