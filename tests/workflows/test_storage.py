import threading
from pathlib import Path

import pytest

from workflows import storage


def test_second_creation_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "record.json"
    storage.create(path, b"first")
    with pytest.raises(storage.AlreadyExistsError):
        storage.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_of_many_creations_at_once_one_wins_whole(tmp_path: Path) -> None:
    path, won = tmp_path / "record.json", []
    barrier = threading.Barrier(16)

    def create(number: int) -> None:
        barrier.wait()
        try:
            storage.create(path, str(number).encode() * 10_000)
        except storage.AlreadyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == str(won[0]).encode() * 10_000
