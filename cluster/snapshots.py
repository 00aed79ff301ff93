"""What a search that was interrupted left behind: whole snapshots only are gone on from."""

import json
from contextlib import suppress
from typing import Any

import fsspec
from ray import cloudpickle

_STATE = "experiment_state-"
_SEARCHER_STATES = ("basic-variant-state-", "search_gen_state-")


def is_left_whole(experiment: str) -> bool:
    """Whether Tune can go on from the newest snapshot in the folder or URL `experiment`.

    Tune writes a snapshot file by file: a driver that is killed meanwhile leaves one that cannot be
    read, or a searcher that knows of another number of trials than the search; killed before its
    first, it leaves none, and Tune would go on with an empty search space. Torn snapshots are
    removed, so that the one before them is the newest; without any, the whole folder is.
    """
    files, folder = fsspec.url_to_fs(experiment, use_listings_cache=False)
    if not files.exists(folder):
        return False
    names = {path.rsplit("/", 1)[-1]: path for path in files.ls(folder, detail=False)}
    sessions = [name[len(_STATE) :] for name in names if name.startswith(_STATE)]
    for session in sorted(sessions, reverse=True):
        snapshot = {name: path for name, path in names.items() if name.endswith(session)}
        with suppress(Exception):  # whatever torn JSON and torn pickles raise
            if _is_whole({name: files.cat_file(path) for name, path in snapshot.items()}):
                return True
        for path in snapshot.values():
            files.rm_file(path)
    files.rm(folder, recursive=True)
    return False


def _is_whole(snapshot: dict[str, bytes]) -> bool:
    """Whether search and searcher of a snapshot, by file name, know of the same trials."""
    trials: list[Any] = []
    created = 0
    for name, content in snapshot.items():
        if name.startswith(_STATE):
            trials = json.loads(content)["trial_data"]
        elif name.startswith(_SEARCHER_STATES):
            state = cloudpickle.loads(content)
            iterators = state.get("_iterators")
            created = sum(it.counter for it in iterators) if iterators else state["counter"]
    return len(trials) == created > 0
