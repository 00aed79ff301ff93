from pathlib import Path

import pytest

from trainers import corpus
from trainers.config import CorpusConfig, SourceConfig
from trainers.corpus import CorpusFacts
from trainers.errors import DataError


def build(
    folder: Path, texts: list[str], held_out: list[str] | None = None, **settings: float
) -> tuple[CorpusFacts, list[str], list[str]]:
    source, output = folder / "texts.txt", folder / "corpus"
    source.write_text("\n".join(texts), encoding="utf-8")
    output.mkdir()
    config = CorpusConfig(sources=[SourceConfig(path="texts.txt", format="lines")], **settings)  # type: ignore[arg-type]
    facts = corpus.build(config, [[source]], held_out or [], output)
    parts = [
        [text for shard in corpus.shards(output, part) for text in corpus.read(shard)]
        for part in (corpus.TRAIN, corpus.VALIDATION)
    ]
    return facts, parts[0], parts[1]


def test_duplicates_are_kept_once_whatever_their_case_and_spacing(tmp_path: Path) -> None:
    texts = ["One text", "one  TEXT", "another", "One text"]
    facts, train, _ = build(tmp_path, texts, validation_fraction=0.0)
    assert train == ["One text", "another"]
    assert facts == CorpusFacts(train=2, validation=0, duplicates=2, held_out=0)


def test_texts_that_are_held_out_are_in_no_part(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(100)]
    facts, train, validation = build(tmp_path, texts, ["TEXT 7", "text  8"])
    assert not {"text 7", "text 8"} & {*train, *validation}
    assert facts.held_out == 2
    assert len(train) + len(validation) == 98


def test_part_of_a_text_does_not_depend_on_the_others(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(500)]
    for name in "ab":
        (tmp_path / name).mkdir()
    _, _, validation = build(tmp_path / "a", texts, validation_fraction=0.2)
    _, _, of_some = build(tmp_path / "b", texts[::-2], validation_fraction=0.2)
    assert 60 < len(validation) < 140
    assert set(of_some) == set(validation) & set(texts[::-2])


def test_shards_are_as_large_as_stated(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(25)]
    build(tmp_path, texts, shard_documents=10, validation_fraction=0.0)
    shards = corpus.shards(tmp_path / "corpus", corpus.TRAIN)
    assert [len(list(corpus.read(shard))) for shard in shards] == [10, 10, 5]


@pytest.mark.parametrize(("texts", "held_out"), [([""], []), (["one"], ["one"])])
def test_empty_corpus_is_refused(tmp_path: Path, texts: list[str], held_out: list[str]) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        build(tmp_path, texts, held_out)


def test_facts_count_every_document_that_was_read(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(50)]
    read = [*texts, *texts[:7], "barred", "Barred"]
    facts, train, validation = build(tmp_path, read, ["barred"], validation_fraction=0.3)
    assert facts == CorpusFacts(len(train), len(validation), duplicates=7, held_out=2)
    assert sorted([*train, *validation]) == sorted(texts)
    assert validation


def test_sources_are_read_in_their_order(tmp_path: Path) -> None:
    for name, text in [("a.txt", "one\ntwo"), ("b.jsonl", '{"text": "TWO"}\n{"text": "three"}')]:
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = CorpusConfig.model_validate(
        {"sources": [{"path": "b.jsonl"}, {"path": "a.txt"}], "validation_fraction": 0.0}
    )
    files = [[tmp_path / "b.jsonl"], [tmp_path / "a.txt"]]
    facts = corpus.build(config, files, [], tmp_path)
    (shard,) = corpus.shards(tmp_path, corpus.TRAIN)
    assert list(corpus.read(shard)) == ["TWO", "three", "one"]
    assert facts.duplicates == 1
