import gzip
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import cleaning, corpus, documents, pieces
from trainers.config import CorpusConfig
from trainers.corpus import (
    CleanedShard,
    CleanWork,
    Duplicates,
    DuplicatesWork,
    KeepWork,
    KeptShard,
)
from trainers.errors import DataError


class Built:
    """A corpus built in this process, all passes over all shards."""

    def __init__(self, folder: Path, held_out: list[str], slices: int = 1, **config: Any) -> None:
        self.config = CorpusConfig.model_validate({"validation_fraction": 0.0, **config})
        self.folder, self.slices = folder, slices
        cleaning.write_held_out(held_out, self.config.clean, folder / "held-out")
        self.shards = [
            shard
            for number, source in enumerate(self.config.sources)
            for shard in pieces.cut(
                source, number, documents.expand(source.path, folder), self.config.shard_bytes
            )
        ]
        self.cleaned = [self._clean(number) for number in range(len(self.shards))]
        self.duplicates = [
            self._find(number) for number in range(slices * self.config.clean.deduplicate)
        ]
        self.kept = [self._keep(number) for number in range(len(self.shards))]

    @property
    def facts(self) -> dict[str, Any]:
        paths = [source.path for source in self.config.sources]
        return corpus.facts(self.cleaned, self.duplicates, self.kept, sources=paths)

    def texts(self, part: str = corpus.TRAIN) -> list[str]:
        folders = [self._directory("keep", number) for number in range(len(self.shards))]
        files = [file for folder in folders for file in sorted(folder.glob(f"{part}-*.parquet"))]
        return [text for file in files for text in corpus.read(file)]

    def _clean(self, number: int) -> CleanedShard:
        return corpus.clean_shard(
            CleanWork(
                self.shards[number],
                self.config.clean,
                skips_malformed=self.config.malformed == "skip",
                held_out=self.folder / "held-out",
                root=None,
                directory=self._directory("clean", number),
            )
        )

    def _find(self, number: int) -> Duplicates:
        folders = [self._directory("clean", shard) for shard in range(len(self.shards))]
        keys = tuple(corpus.keys_of(folder) for folder in folders)
        directory = self._directory("duplicates", number)
        work = DuplicatesWork(number, self.slices, keys, directory)
        return corpus.find_duplicates(work)

    def _keep(self, number: int) -> KeptShard:
        found = [self._directory("duplicates", n) for n in range(len(self.duplicates))]
        return corpus.keep_shard(
            KeepWork(
                number,
                cleaned=self._directory("clean", number),
                duplicates=tuple(found),
                validation_fraction=self.config.validation_fraction,
                shard_bytes=self.config.shard_bytes,
                directory=self._directory("keep", number),
            )
        )

    def _directory(self, phase: str, number: int) -> Path:
        directory = self.folder / "work" / phase / f"{number:06d}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def write(folder: Path, texts: list[str], name: str = "texts.jsonl") -> dict[str, Any]:
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return {"path": name}


def build(folder: Path, texts: list[str], *held_out: str, **config: Any) -> Built:
    return Built(folder, list(held_out), sources=[write(folder, texts)], **config)


def test_duplicates_are_kept_once_whatever_their_case_and_spacing(tmp_path: Path) -> None:
    built = build(tmp_path, ["One text", "one  TEXT", "another", "One text"])
    assert built.texts() == ["One text", "another"]
    assert built.facts["duplicates"] == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 7))
def test_first_of_equal_documents_is_kept_across_all_shards(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], slices: int
) -> None:
    texts = [f"a text of some words with the number {number}" for number in numbers]
    folder = tmp_path_factory.mktemp("corpus")
    built = build(folder, texts, slices=slices, shard_bytes=1024)
    assert built.texts() == list(dict.fromkeys(texts))
    assert built.facts["duplicates"] == len(texts) - len(set(texts))


def test_what_is_kept_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    texts = [f"text {number % 700} of the corpus" for number in range(1000)]
    found = []
    for shard_bytes in (1024, 4096, 1 << 20):
        folder = tmp_path / str(shard_bytes)
        folder.mkdir()
        built = build(folder, texts, shard_bytes=shard_bytes, validation_fraction=0.2)
        found.append((built.texts(), built.texts(corpus.VALIDATION), built.facts))
    assert len(built.shards) == 1
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) + len(found[0][1]) == 700


def test_equal_documents_of_two_sources_are_one(tmp_path: Path) -> None:
    sources = [
        write(tmp_path, ["TWO", "three"], "b.jsonl"),
        write(tmp_path, ["one", "two"], "a.jsonl"),
    ]
    built = Built(tmp_path, [], sources=sources)
    assert built.texts() == ["TWO", "three", "one"]
    files = [tmp_path / "work" / "keep" / f"{n:06d}" / "train-000.parquet" for n in range(2)]
    assert [corpus.source_of(file) for file in files] == [0, 1]


def test_file_that_cannot_be_cut_gives_shards_of_bounded_size(tmp_path: Path) -> None:
    texts = [f"text {number} {'x' * 90}" for number in range(200)]
    packed = gzip.compress("\n".join(texts).encode())
    (tmp_path / "texts.txt.gz").write_bytes(packed)
    source = {"path": "texts.txt.gz", "format": "lines"}
    built = Built(tmp_path, [], sources=[source], shard_bytes=2000)
    assert len(built.shards) == 1
    files = sorted((tmp_path / "work" / "keep" / "000000").iterdir())
    assert [file.name for file in files] == built.kept[0].files
    assert len(files) == 10
    assert all(corpus.text_bytes(file) < 3000 for file in files)
    assert built.texts() == texts


def test_duplicates_stay_where_they_are_wanted(tmp_path: Path) -> None:
    built = build(tmp_path, ["one", "one"], clean={"deduplicate": False}, validation_fraction=0.5)
    # Equal documents are on the same side all the same.
    assert sorted([len(built.texts()), len(built.texts(corpus.VALIDATION))]) == [0, 2]


def test_part_of_a_text_does_not_depend_on_the_others(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(500)]
    for name in "ab":
        (tmp_path / name).mkdir()
    validation = build(tmp_path / "a", texts, validation_fraction=0.2).texts(corpus.VALIDATION)
    of_some = build(tmp_path / "b", texts[::-2], validation_fraction=0.2).texts(corpus.VALIDATION)
    assert 60 < len(validation) < 140
    assert set(of_some) == set(validation) & set(texts[::-2])


def test_facts_count_every_document_that_was_read(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(50)]
    run = " ".join(f"w{number}" for number in range(13))
    read = [*texts, *texts[:7], "barred", "Barred", "tiny", f"a {run} b"]
    source = write(tmp_path, read)
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write("\nno json\n{}")
    built = Built(
        tmp_path,
        ["barred", f"c {run}"],
        sources=[source],
        clean={"min_characters": 5},
        validation_fraction=0.3,
        malformed="skip",
        shard_bytes=1024,
    )
    assert sorted(built.texts() + built.texts(corpus.VALIDATION)) == sorted(texts)
    facts = built.facts
    assert len(facts.pop("malformed_examples")) == 2
    assert facts == {
        "train": len(built.texts()),
        "validation": len(built.texts(corpus.VALIDATION)),
        "duplicates": 7,
        "held_out": 2,
        "contaminated": 1,
        "short": 1,
        "malformed": 2,
    }


def test_what_is_malformed_is_refused_unless_it_is_to_be_skipped(tmp_path: Path) -> None:
    source = write(tmp_path, [f"text {number}" for number in range(100)])
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write("\n{broken\n")
    with pytest.raises(DataError, match=r"texts\.jsonl, line 101: not JSON"):
        Built(tmp_path, [], sources=[source], shard_bytes=1024)
    built = Built(tmp_path, [], sources=[source], shard_bytes=1024, malformed="skip")
    assert len(built.texts()) == 100
    (example,) = built.facts["malformed_examples"]
    assert "texts.jsonl, line 101: not JSON" in example


@pytest.mark.parametrize(("texts", "held_out"), [([""], []), (["one"], ["one"])])
def test_empty_corpus_is_refused(tmp_path: Path, texts: list[str], held_out: list[str]) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        _ = build(tmp_path, texts, *held_out).facts


def test_shard_made_elsewhere_is_read_as_the_first_source(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.parquet"
    pyarrow.parquet.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), shard)
    assert list(corpus.read(shard)) == ["one", "two"]
    assert corpus.source_of(shard) == 0
    assert 5 < corpus.text_bytes(shard) < 500


def test_results_of_shards_survive_as_plain_values() -> None:
    found = CleanedShard(kept=3, examples=["x"])
    assert CleanedShard(**json.loads(json.dumps(asdict(found)))) == found


LARGE = 50_000_000


def write_malformed(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """A source of every kind of damage by its name, and what is to be said of it."""
    good = "\n".join(json.dumps({"text": f"document {number}"}) for number in range(1000))
    (folder / "line.jsonl").write_text(f'{good}\n{{"text": "cut off\n{good}')
    (folder / "empty.txt").write_text("")
    latin = [f"ligne {number}" for number in range(500)]
    latin[321] = "caf\xe9"
    (folder / "encoding.txt").write_bytes("\n".join(latin).encode("latin-1"))
    packed = gzip.compress("\n".join(f"packed {number}" for number in range(9000)).encode())
    (folder / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    table = pa.table({"text": [f"row {number}" for number in range(100)]})
    pyarrow.parquet.write_table(table, folder / "cut.parquet")
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:-20])
    return {
        "line.jsonl": ({}, r"line\.jsonl, line 1001: not JSON"),
        "empty.txt": ({}, r"empty\.txt: there is no text in it"),
        "encoding.txt": ({}, r"encoding\.txt, line 322: not utf-8; .* encoding: latin-1"),
        "cut.txt.gz": ({"format": "lines"}, r"cut\.txt\.gz: cannot be read after line \d+"),
        "cut.parquet": ({}, r"cut\.parquet: not a readable Parquet file"),
    }


def test_everything_malformed_is_named_and_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    large = " ".join(f"word{number % 1000}" for number in range(LARGE // 8))
    sources = [write(tmp_path, ["small", large], "large.jsonl")]
    malformed = write_malformed(tmp_path)
    for name, (settings_, message) in malformed.items():
        sources.append({"path": name, **settings_})
        with pytest.raises(DataError, match=message):
            Built(tmp_path, [], sources=[sources[-1]], shard_bytes=4096)
    built = Built(tmp_path, [], sources=sources, shard_bytes=LARGE // 4, malformed="skip")
    facts = built.facts
    assert facts["malformed"] == len(malformed)
    for example, (_, message) in zip(facts["malformed_examples"], malformed.values(), strict=True):
        assert re.search(message, example)
    texts = built.texts()
    assert texts[:2] == ["small", large]
    assert {"document 999", "ligne 320", "ligne 322", "packed 0"} <= set(texts)
    assert facts["duplicates"] == 1000
