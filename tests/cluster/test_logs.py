"""What a process prints goes to one file, in which each trial's part is found."""

import os
from pathlib import Path

import pytest

from cluster.logs import mark_trial, parts_of_trial, redirected


def test_what_each_trial_of_a_process_printed_is_found_by_its_name(tmp_path: Path) -> None:
    log = tmp_path / "search.slot1.log"
    with redirected(log):
        os.write(1, b"imports\n")
    for trial, said in (("a", b"one\n"), ("ab", b"==> trial\n"), ("a", b"two\nthree")):
        with redirected(log):
            mark_trial(trial)
            os.write(1, said)  # as C code prints
    text = log.read_text()
    assert list(parts_of_trial(text, "a")) == ["one", "two\nthree"]
    assert list(parts_of_trial(text, "ab")) == ["==> trial"]
    assert list(parts_of_trial(text, "b")) == []
    assert "imports" in text


def test_a_relative_log_is_in_the_cache_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path))
    with redirected(Path("runs/nightly/pretrain.log")):
        os.write(1, b"of this node\n")
    assert (tmp_path / "runs" / "nightly" / "pretrain.log").read_text() == "of this node\n"
