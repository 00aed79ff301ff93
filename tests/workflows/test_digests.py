import hashlib
import logging
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workflows.digests import DigestCache, Finding

QUESTION = "1 lines utf-8"
HOUR_NS = 3600 * 10**9


def an_hour_from_now() -> int:
    """A clock for which every file has been at rest for long."""
    return time.time_ns() + HOUR_NS


def look(file: Path) -> Callable[[], Finding]:
    return lambda: Finding(hashlib.sha256(file.read_bytes()).hexdigest(), ("text", "label"))


def refuse() -> Finding:
    raise AssertionError("the file was read again")


def remember(cache: Path, file: Path, question: str = QUESTION) -> Finding:
    with DigestCache(cache, an_hour_from_now) as digests:
        return digests.finding(file, question, look(file))


def is_read_again(cache: Path, file: Path, question: str = QUESTION) -> bool:
    """Whether the file is; if so, that what is found is true now."""
    read: list[Path] = []

    def looked() -> Finding:
        read.append(file)
        return look(file)()

    with DigestCache(cache, an_hour_from_now) as digests:
        assert digests.finding(file, question, looked) == look(file)()
    return bool(read)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,good\n", encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.sqlite"


@pytest.mark.parametrize("columns", [None, (), ("text", "köln", "\ud800")])
def test_unchanged_file_is_not_read_again(
    cache: Path, file: Path, columns: tuple[str, ...] | None
) -> None:
    finding = Finding("ab" * 32, columns)
    with DigestCache(cache, an_hour_from_now) as digests:
        digests.finding(file, QUESTION, lambda: finding)
    with DigestCache(cache, an_hour_from_now) as digests:
        assert digests.finding(file, QUESTION, refuse) == finding


def test_other_question_is_asked_anew(cache: Path, file: Path) -> None:
    remember(cache, file)
    assert is_read_again(cache, file, "1 lines latin-1")
    assert not is_read_again(cache, file)


def test_other_content_of_the_same_size_is_found(cache: Path, file: Path) -> None:
    remember(cache, file)
    time.sleep(0.02)  # a tick of the file system's clock is up to 10 ms
    file.write_bytes(file.read_bytes().replace(b"good", b"evil"))
    assert is_read_again(cache, file)


def test_time_of_modification_put_back_hides_nothing(cache: Path, file: Path) -> None:
    remember(cache, file)
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(file.read_bytes().replace(b"good", b"evil"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert is_read_again(cache, file)


def test_renamed_file_is_read_under_its_new_name(cache: Path, file: Path) -> None:
    remember(cache, file)
    other = file.with_name("b.csv")
    other.write_bytes(file.read_bytes().replace(b"good", b"evil"))
    remember(cache, other)
    other.replace(file)
    assert is_read_again(cache, file)
    file.rename(other)
    assert is_read_again(cache, other)


def test_link_to_another_file_is_followed(cache: Path, file: Path) -> None:
    other, link = file.with_name("b.csv"), file.with_name("link.csv")
    other.write_bytes(file.read_bytes().replace(b"good", b"evil"))
    link.symlink_to(file)
    remember(cache, link)
    link.unlink()
    link.symlink_to(other)
    assert is_read_again(cache, link)


@pytest.mark.parametrize(
    ("age_ns", "is_remembered"), [(0, False), (1_900_000_000, False), (2_000_000_000, True)]
)
def test_file_is_remembered_two_seconds_after_it_changed(
    cache: Path, file: Path, age_ns: int, is_remembered: bool
) -> None:
    changed_ns = file.stat().st_ctime_ns
    with DigestCache(cache, lambda: changed_ns + age_ns) as digests:
        digests.finding(file, QUESTION, look(file))
    assert is_read_again(cache, file) is not is_remembered


def test_file_that_changes_while_it_is_read_is_not_remembered(cache: Path, file: Path) -> None:
    def changing() -> Finding:
        found = look(file)()
        file.write_bytes(file.read_bytes() + b"more,bad\n")
        return found

    with DigestCache(cache, an_hour_from_now) as digests:
        digests.finding(file, QUESTION, changing)
    assert is_read_again(cache, file)


def test_refused_file_is_not_remembered_and_those_before_it_are(cache: Path, file: Path) -> None:
    other = file.with_name("b.csv")
    other.write_bytes(b"\xff")

    def refused() -> Finding:
        raise ValueError("not utf-8")

    def look_at_both() -> None:
        with DigestCache(cache, an_hour_from_now) as digests:
            digests.finding(file, QUESTION, look(file))
            digests.finding(other, QUESTION, refused)

    with pytest.raises(ValueError, match="not utf-8"):
        look_at_both()
    assert not is_read_again(cache, file)
    assert is_read_again(cache, other)


def test_missing_file_is_left_to_who_looks(cache: Path, file: Path) -> None:
    remember(cache, file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        remember(cache, file)


def test_file_name_need_not_be_text(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text("text")
    remember(cache, file)
    assert not is_read_again(cache, file)


def test_what_was_found_long_ago_is_forgotten(cache: Path, file: Path) -> None:
    other = file.with_name("b.csv")
    other.write_text("text\n")
    remember(cache, file)
    with DigestCache(cache, lambda: time.time_ns() + 91 * 24 * HOUR_NS) as digests:
        digests.finding(other, QUESTION, look(other))
    assert is_read_again(cache, file)
    assert not is_read_again(cache, other)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def read_twice(cache: Path, file: Path) -> None:
    """Find a file twice by one cache, each time truly."""
    with DigestCache(cache, an_hour_from_now) as digests:
        for _ in range(2):
            assert digests.finding(file, QUESTION, look(file)) == look(file)()


@pytest.mark.parametrize("kept_bytes", [0, 50, 3000, 5000])
def test_damaged_cache_costs_only_time(
    cache: Path, file: Path, kept_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    remember(cache, file)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:kept_bytes] + random.Random(0).randbytes(len(whole) - kept_bytes))
    read_twice(cache, file)
    assert len(warnings(caplog)) == 1
    assert str(cache) in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"text", b"test"),
        (hashlib.sha256(b"text,label\nfine,good\n").hexdigest().encode(), b"0" * 64),
    ],
)
def test_damage_that_sqlite_does_not_see_is_seen_and_mended(
    cache: Path, file: Path, old: bytes, new: bytes
) -> None:
    remember(cache, file)
    whole = cache.read_bytes()
    start = whole.rindex(old)  # behind the table's definition
    cache.write_bytes(whole[:start] + new + whole[start + len(old) :])
    assert is_read_again(cache, file)
    assert not is_read_again(cache, file)


def test_cache_cut_to_nothing_is_an_empty_one(cache: Path, file: Path) -> None:
    remember(cache, file)
    cache.write_bytes(b"")
    assert is_read_again(cache, file)
    assert not is_read_again(cache, file)


def test_cache_whose_folder_cannot_be_made_costs_only_time(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (file, Path("/proc/nowhere")):  # a file; a place where root cannot write either
        caplog.clear()
        read_twice(folder / "digests.sqlite", file)
        assert len(warnings(caplog)) == 1


READER = """
import os, sys, time
from pathlib import Path
from workflows.digests import DigestCache, Finding
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
folder, question = Path(sys.argv[1]), sys.argv[2]
with DigestCache(folder / "cache" / "digests.sqlite", lambda: time.time_ns() + 10**13) as digests:
    for name in ("a.csv", "b.csv"):
        print(name, digests.finding(folder / name, question, lambda: Finding("read", None)).sha256)
"""


def test_read_only_cache_answers_and_keeps_nothing() -> None:
    # Not `tmp_path`: nobody but the user of the tests may look into that.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, other, cache = folder / "a.csv", folder / "b.csv", folder / "cache" / "digests.sqlite"
        file.write_text("text\nfine\n")
        other.write_text("text\n")
        known = remember(cache, file).sha256
        # Not the files: a new mode is a change that the cache must take for one.
        cache.chmod(0o444)
        cache.parent.chmod(0o555)
        folder.chmod(0o555)
        try:
            answer = subprocess.run(
                [sys.executable, "-c", READER, name, QUESTION],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            for path in (folder, cache.parent):
                path.chmod(0o755)
        assert answer.stdout == f"a.csv {known}\nb.csv read\n"
        assert answer.stderr.count("is not used: attempt to write a readonly database") == 1
        assert is_read_again(cache, other)


CROWD = """
import sys, time
from pathlib import Path
from workflows.digests import DigestCache, Finding
cache, folder, question = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for _ in range(10):
    with DigestCache(cache, lambda: time.time_ns() + 10**13) as digests:
        for file in sorted(folder.iterdir()):
            digests.finding(file, question, lambda: Finding(file.read_text(), None))
    question += "+"
"""


def test_processes_share_a_cache(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(100):
        (folder / str(number)).write_text(str(number))
    questions = ["same", "same", "other", "third"]
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(cache), str(folder), question],
            stderr=subprocess.PIPE,
            text=True,
        )
        for question in questions
    ]
    assert [process.communicate()[1] for process in crowd] == [""] * len(crowd)
    with DigestCache(cache, an_hour_from_now) as digests:
        for question in set(questions):
            for times in range(10):
                for file in folder.iterdir():
                    asked = question + "+" * times
                    assert digests.finding(file, asked, refuse).sha256 == file.name


def test_locked_cache_costs_only_time(
    cache: Path, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(cache, file)
    other = file.with_name("b.csv")
    other.write_text("text\n")
    monkeypatch.setattr("workflows.digests._TIMEOUT_S", 0.05)
    holder = sqlite3.connect(cache, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert not is_read_again(cache, file)
    assert warnings(caplog) == []
    remember(cache, other)
    assert len(warnings(caplog)) == 1
    holder.execute("ROLLBACK")
    holder.close()
    assert is_read_again(cache, other)
