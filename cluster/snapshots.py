"""What a search that was interrupted left behind: whole snapshots only are gone on from."""

import json
from contextlib import suppress
from typing import Any

import fsspec
from ray import cloudpickle

_STATE = "experiment_state-"
_POPULATION, _GENERATOR, _SEARCHER = (
    "basic-variant-state-",
    "search_gen_state-",
    "searcher-state-",
)
_KINDS = (_STATE, _POPULATION, _GENERATOR, _SEARCHER)


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
    sessions = [
        name.removeprefix(_STATE).removesuffix(".json") for name in names if name.startswith(_STATE)
    ]
    for session in sorted(sessions, reverse=True):
        snapshot = {n: path for n, path in names.items() if n.startswith(_KINDS) and session in n}
        with suppress(Exception):  # whatever torn JSON and torn pickles raise
            if _is_whole({name: files.cat_file(path) for name, path in snapshot.items()}):
                return True
        for path in snapshot.values():
            files.rm_file(path)
    files.rm(folder, recursive=True)
    return False


def _is_whole(snapshot: dict[str, bytes]) -> bool:
    """Whether all files of a snapshot, by name, can be read and know of the same trials."""
    found: dict[str, Any] = {}
    for name, content in snapshot.items():
        for kind in _KINDS:
            if name.startswith(kind):
                read = json.loads if kind == _STATE else cloudpickle.loads
                found[kind] = read(content)
    if _POPULATION in found:
        created = sum(iterator.counter for iterator in found[_POPULATION]["_iterators"])
    else:  # around a searcher of its own file
        created = found[_GENERATOR]["counter"] if _SEARCHER in found else 0
    return bool(len(found[_STATE]["trial_data"]) == created > 0)
