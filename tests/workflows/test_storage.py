"""The whole suite runs on a folder and on an object store."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workflows import storage as storage_module
from workflows.storage import AlreadyExistsError, Storage, StorageError


def test_second_creation_is_refused_and_changes_nothing(storage: Storage) -> None:
    storage.create("a/record.json", b"first")
    with pytest.raises(AlreadyExistsError):
        storage.create("a/record.json", b"second")
    assert storage.read("a/record.json") == b"first"
    assert storage.names("a") == ["record.json"]


def test_creation_whose_answer_was_lost_is_found_to_be_its_own(
    remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats the call, and is told that the file exists."""
    client = remote._files
    plain_pipe = client.pipe_file

    def repeated(url: str, content: bytes, mode: str) -> None:
        plain_pipe(url, content, mode=mode)
        plain_pipe(url, content, mode=mode)

    monkeypatch.setattr(client, "pipe_file", repeated)
    remote.create("a/record.json", b"mine")
    assert remote.read("a/record.json") == b"mine"
    with pytest.raises(AlreadyExistsError):
        remote.create("a/record.json", b"yours")


def test_link_whose_answer_was_lost_is_found_to_be_its_own(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network file systems do it."""
    plain_link = os.link

    def repeated(source: Path, target: Path) -> None:
        plain_link(source, target)
        plain_link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    local.create("a/record.json", b"mine")
    assert local.read("a/record.json") == b"mine"
    with pytest.raises(AlreadyExistsError):
        local.create("a/record.json", b"yours")
    assert local.names("a") == ["record.json"]


def test_of_many_creations_at_once_one_wins_whole(storage: Storage) -> None:
    won = []
    barrier = threading.Barrier(16)

    def create(number: int) -> None:
        barrier.wait()
        try:
            storage.create("record.json", str(number).encode() * 10_000)
        except AlreadyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("record.json") == str(won[0]).encode() * 10_000


def test_files_are_written_read_found_copied_and_deleted(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/x", b"old")
    storage.write("a/x", b"new")
    storage.write("a/b/y", b"12345")
    assert storage.read("a/x") == b"new"
    assert storage.names("a") == ["b", "x"]
    assert storage.names("missing") == []
    assert storage.find("a") == {"b/y": 5, "x": 3}
    assert storage.size("a") == 8
    assert storage.size("a/x") == 3
    assert storage.read_all(["a/x", "a/z", "a/b/y"]) == {"a/x": b"new", "a/b/y": b"12345"}
    storage.copy("a", "c/d")
    assert storage.find("c/d") == storage.find("a")
    storage.delete("a/x")
    storage.delete("a/x")
    assert not storage.exists("a/x")
    assert storage.exists("a/b/y")
    storage.delete("c")
    assert storage.find("c") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("a/x")


def test_folders_go_up_and_come_down_whole(remote: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "sub" / "b").write_bytes(bytes(1000))
    remote.upload(source, "up")
    remote.download("up", tmp_path / "down")
    assert (tmp_path / "down" / "sub" / "b").read_bytes() == bytes(1000)
    assert remote.fetched("up") == remote.fetched("up")
    assert (remote.fetched("up") / "a").read_bytes() == b"1"


def test_what_another_process_wrote_is_seen_at_once(storage: Storage) -> None:
    other: Storage = pickle.loads(pickle.dumps(storage))
    assert storage.names("a") == []
    other.create("a/x", b"1")
    assert storage.names("a") == ["x"]
    other.create("a/y", b"1")
    assert storage.names("a") == ["x", "y"]


def test_unknown_scheme_is_refused_with_those_there_are() -> None:
    with pytest.raises(StorageError, match=r"ftp://host.*s3://, gs://, abfs://"):
        Storage.at("ftp://host/x")


def test_missing_client_is_told_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(scheme: str) -> None:
        raise ImportError(f"no client for {scheme}")

    monkeypatch.setattr(storage_module.fsspec, "get_filesystem_class", missing)
    with pytest.raises(StorageError, match=r"pip install 'pretune\[gcs\]'"):
        Storage.at("gs://bucket/x")


def test_bucket_that_is_not_there_is_one_clear_error(s3: str) -> None:
    with pytest.raises(StorageError, match=r"nobucket.*bucket does not exist"):
        Storage.at("s3://nobucket/x").create("a", b"1")


def test_refused_connection_is_one_clear_error() -> None:
    """In a process of its own: clients keep their connections."""
    code = (
        "from workflows.storage import Storage, StorageError\n"
        "try: Storage.at('s3://bucket/x').create('a', b'1')\n"
        "except StorageError as error: print(error)\n"
    )
    settings = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_MAX_ATTEMPTS": "1",
    }
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert told.stdout.startswith("s3://bucket/x/a cannot be written"), told.stdout + told.stderr
    assert "connect" in told.stdout.lower()


def test_full_disk_is_told_with_the_free_space_and_leaves_the_last_state(small_disk: Path) -> None:
    where = Storage.at(small_disk / "storage")
    where.create("a/first", b"first")
    with pytest.raises(StorageError, match=r"a/second cannot be written: No space.*MB free.*again"):
        where.create("a/second", bytes(2_000_000))
    with pytest.raises(StorageError, match="No space"):
        where.write("a/first", bytes(2_000_000))
    assert where.names("a") == ["first"]
    assert where.read("a/first") == b"first"
    where.create("a/second", b"fits")


def test_read_only_disk_is_told_with_a_way_out(small_disk: Path) -> None:
    where = Storage.at(small_disk / "storage")
    where.create("a/first", b"first")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"Read-only file system; let this user write there"):
        where.create("a/second", b"x")
    assert where.read("a/first") == b"first"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "MB free"),
        (errno.EDQUOT, "MB free"),
        (errno.EACCES, "let this user write there"),
        (errno.EROFS, "set storage to another place"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_refuses_names_the_place_and_a_way_out(
    local: Storage, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    local.create("a/first", b"first")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=told) as caught:
        local.create("a/second", b"second")
    assert local.url("a/second") in str(caught.value)
    monkeypatch.undo()
    assert local.names("a") == ["first"]
