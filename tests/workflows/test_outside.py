from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from workflows.config import ConfigError, load_config
from workflows.outside import OutsideData, inspect


def look(folder: Path, data: dict[str, Any]) -> OutsideData:
    return inspect(load_config(write_pipeline(folder, data)), folder)


def test_digests_follow_from_content_not_from_place(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    before = look(tmp_path, pipeline)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "corpus.txt").rename(tmp_path / "elsewhere" / "moved.txt")
    pipeline["corpus"]["sources"][0]["path"] = "elsewhere/moved.txt"
    after = look(tmp_path, pipeline)
    assert list(before.corpus.values()) == list(after.corpus.values())
    assert before.corpus != after.corpus


def test_one_changed_byte_changes_the_digest(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    before = look(tmp_path, pipeline).tasks["tone"]
    path = tmp_path / "tone.csv"
    path.write_bytes(path.read_bytes().replace(b"wonderful", b"wonderfuL", 1))
    after = look(tmp_path, pipeline).tasks["tone"]
    assert before != after


def test_missing_file_is_named(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    (tmp_path / "corpus.txt").unlink()
    with pytest.raises(ConfigError, match=r"corpus\.txt: no such file"):
        look(tmp_path, pipeline)


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_file_without_text_is_named(tmp_path: Path, pipeline: dict[str, Any], content: str) -> None:
    (tmp_path / "corpus.txt").write_text(content)
    with pytest.raises(ConfigError, match=r"corpus\.txt: there is no text in it"):
        look(tmp_path, pipeline)


@pytest.mark.parametrize(("key", "column"), [("label", "tone"), ("text", "body")])
def test_missing_column_is_named_with_those_there_are(
    tmp_path: Path, pipeline: dict[str, Any], key: str, column: str
) -> None:
    pipeline["tasks"]["tone"]["data"][key] = column
    with pytest.raises(ConfigError, match=f"no column '{column}'; set {key} to one of 'text'"):
        look(tmp_path, pipeline)


@pytest.mark.parametrize("padding", [0, (1 << 20) - 8])
def test_wrong_encoding_is_named_with_its_line(
    tmp_path: Path, pipeline: dict[str, Any], padding: int
) -> None:
    text = b"x" * padding + b"\nfine\ncaf\xe9 latin\n"
    (tmp_path / "corpus.txt").write_bytes(text)
    with pytest.raises(ConfigError, match=r"corpus\.txt, line 3: not utf-8.*encoding: latin-1"):
        look(tmp_path, pipeline)
    pipeline["corpus"]["sources"][0]["encoding"] = "latin-1"
    assert look(tmp_path, pipeline).corpus


def test_text_that_ends_within_a_character_is_found(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    (tmp_path / "corpus.txt").write_bytes("fine\nä".encode()[:-1])
    with pytest.raises(ConfigError, match=r"line 2: not utf-8"):
        look(tmp_path, pipeline)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["tokenizer"] = {"from": "nothing"}
    with pytest.raises(ConfigError, match=r"no tokenizer\.json there"):
        look(tmp_path, pipeline)
