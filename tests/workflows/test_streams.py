"""Files of a finished step, opened one by one on a node."""

import hashlib
import pickle
import time
from pathlib import Path

import pytest

from cluster.cache import cache_folder
from workflows.storage import Storage
from workflows.streams import DamagedFileError, Stream

FILES = {f"{number}.bin": f"content {number}".encode() for number in range(6)}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stream(storage: Storage) -> Stream:
    for name, content in FILES.items():
        storage.write(f"artifacts/tokens/output/{name}", content)
    files = {name: {"sha256": hashlib.sha256(c).hexdigest()} for name, c in FILES.items()}
    return Stream(storage, "artifacts/tokens/output", files, keep=3)


def cached() -> set[str]:
    return {path.name for path in cache_folder().glob("streams/*/*")}


def test_each_file_is_what_was_written(stream: Stream) -> None:
    for name, content in FILES.items():
        assert pickle.loads(pickle.dumps(stream))(name).read_bytes() == content
        assert stream(name).read_bytes() == content


def test_node_keeps_the_files_it_opened_last(stream: Stream) -> None:
    if stream.storage.is_local:
        stream("0.bin")
        assert cached() == set()
        return
    for name in ("0.bin", "1.bin", "2.bin", "0.bin", "3.bin", "0.bin", "4.bin"):
        stream(name)
        time.sleep(0.02)  # the clock of file times may tick that slowly
    assert cached() == {"3.bin", "0.bin", "4.bin"}
    assert stream("1.bin").read_bytes() == FILES["1.bin"]


def test_file_that_is_mapped_is_still_read_when_it_made_room(stream: Stream) -> None:
    with stream("0.bin").open("rb") as file:
        for name in FILES:
            stream(name)
        assert file.read() == FILES["0.bin"]


def test_changed_file_is_refused_and_not_kept(remote: Storage) -> None:
    remote.write("out/a.bin", b"other")
    files = {"a.bin": {"sha256": hashlib.sha256(b"content").hexdigest()}}
    with pytest.raises(DamagedFileError, match=r"out/a\.bin has other bytes .* --force"):
        Stream(remote, "out", files, keep=3)("a.bin")
    assert cached() == set()
