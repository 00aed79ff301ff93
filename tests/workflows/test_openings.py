import json
from concurrent.futures import ThreadPoolExecutor

from workflows.openings import open_test
from workflows.storage import Storage

SPLIT, OTHER = "a" * 64, "b" * 64


def test_openings_are_counted_by_split(storage: Storage) -> None:
    assert open_test(storage, SPLIT, step="tone.final", run="one") == 1
    assert open_test(storage, OTHER, step="places.final", run="one") == 1
    assert open_test(storage, SPLIT, step="tone.promote", run="two") == 2
    entry = json.loads(storage.read(f"openings/{SPLIT[:32]}/000002.json"))
    assert entry["step"] == "tone.promote"
    assert entry["run"] == "two"


def test_openings_at_once_are_each_counted(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: open_test(storage, SPLIT, step=str(n), run="r"), range(8))
    assert sorted(found) == list(range(1, 9))
