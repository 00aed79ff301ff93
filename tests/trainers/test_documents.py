import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from trainers import documents
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.task_config import SplitConfig, TaskDataConfig

TEXTS = ["first text", "zweiter Text: äöü", 'a line\nbreak, and "quotes"']


def read(path: Path, **settings: str) -> list[str]:
    source = SourceConfig(path=str(path), **settings)  # type: ignore[arg-type]
    return list(documents.texts(source, path))


def as_json_lines() -> str:
    return "\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n"


def test_lines_are_documents_and_empty_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n  two  \r\nthree", encoding="utf-8")
    assert read(path) == ["one", "two", "three"]


def test_text_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    assert read(path, format="text") == ["one\ntwo"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_are_read_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    content = as_json_lines().encode()
    match suffix:
        case ".gz":
            content = gzip.compress(content)
        case ".zst":
            content = zstandard.compress(content)
    path.write_bytes(content)
    assert read(path) == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\nzwei: ä\n", ["one", "zwei: ä"]),
        ("a.csv", 'text\n"one\nline"\ntwo\n', ["one\nline", "two"]),
    ],
)
def test_every_text_format_may_be_compressed(
    tmp_path: Path, suffix: str, name: str, content: str, expected: list[str]
) -> None:
    path = tmp_path / f"{name}{suffix}"
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    path.write_bytes(compress(content.encode()))
    assert read(path) == expected


def test_csv_keeps_quoted_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body"])
        writer.writerows(enumerate(TEXTS))
    assert read(path, text="body") == TEXTS


def test_parquet_and_datasets_folders_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), path)
    assert read(path) == TEXTS
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder))
    assert read(folder, format="dataset") == TEXTS


def test_encoding_is_the_one_that_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("latin-1"))
    assert read(path, encoding="latin-1") == ["café"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', "row 1: no column 'text'; it has 'body'"),
        ("a.jsonl", b'{"text": null}\n', "row 1: column 'text' is empty"),
        ("a.txt", b"fine\n" * 9000 + b"caf\xe9\n", "line 9001: not utf-8"),
        ("a.txt.gz", gzip.compress(b"fine\n" * 9000 + b"caf\xe9\n"), "line 9001: not utf-8"),
        ("a.csv", b"body\nx\n", "row 2: no column 'text'; it has 'body'"),
        ("a.csv", b"id,text\n1\n", "row 2: column 'text' is empty"),
        ("a.csv.gz", b"text\nplain\n", "cannot be read"),
        ("a.csv", b"text\na,b\n", "line 2: more fields than the header has"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999)[:-20], "cannot be read"),
        ("a.parquet", b"PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_dataset_with_several_splits_is_refused(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict(train=part).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="several splits"):
        read(tmp_path / "saved", format="dataset")


def test_globs_are_sorted_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in documents.expand("*.txt", tmp_path)] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="no such file"):
        documents.expand("*.csv", tmp_path)


def task_data(path: Path) -> TaskDataConfig:
    split = SplitConfig(test=0.2, validation=0.2)
    return TaskDataConfig(path=str(path), format="conll", split=split)


def test_conll_sentences_end_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("I\tO\nlike\tO\nRome\tB-place\n\t\nOslo\tB-place\n\n\n", encoding="utf-8")
    assert list(documents.rows(task_data(path), path)) == [
        {"text": ["I", "like", "Rome"], "label": ["O", "O", "B-place"]},
        {"text": ["Oslo"], "label": ["B-place"]},
    ]


def test_conll_line_without_a_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("I\tO\nlike\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: expected word, tab, label"):
        list(documents.rows(task_data(path), path))


def test_missing_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"body": TEXTS}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: no column 'text'; it has 'body'"):
        read(path)


def test_folder_that_datasets_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not written by datasets"):
        read(tmp_path, format="dataset")


def test_unknown_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(DataError, match="unknown encoding 'utf-9'"):
        read(path, encoding="utf-9")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_labelled_rows_come_from_the_columns_that_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match path.suffix:
        case ".csv":
            path.write_text("id,body,kind\n1,some text,good\n", encoding="utf-8")
        case ".jsonl":
            path.write_text('{"id": 1, "body": "some text", "kind": "good"}\n', encoding="utf-8")
        case ".parquet":
            table = pa.table({"id": [1], "body": ["some text"], "kind": ["good"]})
            pyarrow.parquet.write_table(table, path)
    split = SplitConfig(test=0.2, validation=0.2)
    data = TaskDataConfig(path=name, text="body", label="kind", split=split)  # type: ignore[call-arg]
    assert list(documents.rows(data, path)) == [{"text": "some text", "label": "good"}]
    assert documents.columns(path, data.format, "utf-8") == ["id", "body", "kind"]
    without = data.model_copy(update={"label": "class"})
    with pytest.raises(DataError, match="no column 'class'; it has 'id', 'body', 'kind'"):
        list(documents.rows(without, path))


def test_cut_zst_is_refused_and_one_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    lines = [f"line {number} {number * 7919 % 1000003}" for number in range(50_000)]
    half = len(lines) // 2
    frames = [
        zstandard.compress(("\n".join(p) + "\n").encode()) for p in (lines[:half], lines[half:])
    ]
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(frames))
    assert read(path) == lines
    for cut in (1, len(frames[1]) // 2):
        path.write_bytes(b"".join(frames)[:-cut])
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nfine,good\n"),
        ("a.csv", '"text","label"\nfine,good\n'),
        ("a.jsonl", '{"text": "fine", "label": "good"}\n'),
    ],
)
def test_byte_order_mark_is_no_text(
    tmp_path: Path, name: str, content: str, suffix: str, encoding: str
) -> None:
    path = tmp_path / f"{name}{suffix}"
    binary = b"\xef\xbb\xbf" + content.encode()
    path.write_bytes(gzip.compress(binary) if suffix else binary)
    split = SplitConfig(test=0.2, validation=0.2)
    data = TaskDataConfig(path=path.name, encoding=encoding, split=split)  # type: ignore[call-arg]
    assert documents.columns(path, data.format, encoding) == ["text", "label"]
    assert list(documents.rows(data, path)) == [{"text": "fine", "label": "good"}]
    assert read(path, encoding=encoding) == ["fine"]


def test_byte_order_mark_is_no_part_of_lines_and_words(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffRome\tplace\n\ufeffinside\tkept\n".encode())
    assert read(path) == ["Rome\tplace", "\ufeffinside\tkept"]
    (sentence,) = documents.rows(task_data(path), path)
    assert sentence["text"] == ["Rome", "\ufeffinside"]


@pytest.mark.parametrize("damage", ["page", "cut", "text"])
def test_parquet_damaged_behind_its_footer_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number * 7919 % 100003}" for number in range(5000)]
    if damage == "text":
        column = pa.array([b"fine"] * 3000 + [b"caf\xe9"])
        table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3001, column.buffers())})
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.parquet.write_table(
            pa.table({"text": texts}), path, row_group_size=2500, use_dictionary=False
        )
        second = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
        content = bytearray(path.read_bytes())
        start, size = second.data_page_offset, second.total_compressed_size
        if damage == "page":
            content[start : start + size] = b"\xff" * size
        else:
            del content[start + 10 : start + size]
        path.write_bytes(bytes(content))
    assert documents.columns(path, "parquet", "utf-8") == ["text"]
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read after row \d+: "):
        read(path)
