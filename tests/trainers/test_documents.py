import csv
import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from trainers import documents
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.pieces import END, Shard, Span
from trainers.task_config import SplitConfig, TaskDataConfig

TEXTS = ["first text", "zweiter Text: äöü", 'a line\nbreak, and "quotes"']


def read(path: Path, told: list[str] | None = None, **settings: str) -> list[str]:
    """The documents of a whole file; what is malformed is put into `told`, else refused."""
    source = SourceConfig(path=str(path), **settings)  # type: ignore[arg-type]
    shard = Shard(source, 0, (Span(str(path), 0, END),))
    return list(documents.read(shard, None if told is None else told.append))


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
        ("a.jsonl", b'{"body": "x"}\n', "line 1: no column 'text'; it has 'body'"),
        ("a.jsonl", b'{"text": null}\n', "line 1: column 'text' is empty"),
        ("a.txt", b"fine\n" * 9000 + b"caf\xe9\n", "line 9001: not utf-8"),
        (
            "a.txt.gz",
            gzip.compress(b"fine\n" * 9000 + b"caf\xe9\n", mtime=0),
            "line 9001: not utf-8",
        ),
        ("a.csv", b"body\nx\n", "no column 'text'; it has 'body'; set text to one"),
        ("a.csv", b"text,id,text\n1,2,3\n", "'text' stands in the header twice; rename one"),
        ("a.csv", b"id,text\n1\n", "line 2: column 'text' is empty"),
        ("a.csv.gz", b"text\nplain\n", "cannot be read"),
        ("a.csv", b"text\na,b\n", "line 2: more fields than the header has"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-20], "cannot be read"),
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


def test_columns_of_one_name_are_refused_where_somebody_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,id,,\n1,fine,2,3,4\n", encoding="utf-8")
    assert read(path) == ["fine"]
    split = SplitConfig(test=0.2, validation=0.2)
    data = TaskDataConfig(path=path.name, split=split)  # type: ignore[call-arg]
    with pytest.raises(DataError, match="'id' stands in the header twice"):
        list(documents.rows(data, str(path)))


def test_dataset_with_several_splits_is_refused(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict(train=part).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="several splits"):
        read(tmp_path / "saved", format="dataset")


def test_globs_are_sorted_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).touch()
    assert [Path(path).name for path in documents.expand("*.txt", tmp_path)] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="no such file"):
        documents.expand("*.csv", tmp_path)


def task_data(path: Path) -> TaskDataConfig:
    split = SplitConfig(test=0.2, validation=0.2)
    return TaskDataConfig(path=str(path), format="conll", split=split)


def test_conll_sentences_end_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("I\tO\nlike\tO\nRome\tB-place\n\t\nOslo\tB-place\n\n\n", encoding="utf-8")
    assert list(documents.rows(task_data(path), str(path))) == [
        {"text": ["I", "like", "Rome"], "label": ["O", "O", "B-place"]},
        {"text": ["Oslo"], "label": ["B-place"]},
    ]


def test_conll_line_without_a_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("I\tO\nlike\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: expected word, tab, label"):
        list(documents.rows(task_data(path), str(path)))


def test_missing_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"body": TEXTS}), path)
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; it has 'body'"):
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
    assert list(documents.rows(data, str(path))) == [{"text": "some text", "label": "good"}]
    assert documents.columns(str(path), data.format, "utf-8") == ["id", "body", "kind"]
    without = data.model_copy(update={"label": "class"})
    with pytest.raises(DataError, match="no column 'class'; it has 'id', 'body', 'kind'"):
        list(documents.rows(without, str(path)))


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
    assert documents.columns(str(path), data.format, encoding) == ["text", "label"]
    assert list(documents.rows(data, str(path))) == [{"text": "fine", "label": "good"}]
    assert read(path, encoding=encoding) == ["fine"]


def test_byte_order_mark_is_no_part_of_lines_and_words(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffRome\tplace\n\ufeffinside\tkept\n".encode())
    assert read(path) == ["Rome\tplace", "\ufeffinside\tkept"]
    (sentence,) = documents.rows(task_data(path), str(path))
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
    assert documents.columns(str(path), "parquet", "utf-8") == ["text"]
    told: list[str] = []
    kept = read(path, told)
    assert len(told) == 1
    assert len(kept) >= 2500
    assert kept == (texts if damage != "text" else ["fine"] * 3000)[: len(kept)]
    with pytest.raises(
        DataError, match=r"a\.parquet(: cannot be read after row \d+: |, row 3001: .* is not utf-8)"
    ):
        read(path)


BYTES_THAT_ARE_NO_TEXT = b"caf\xe9"


@pytest.mark.parametrize("format_", ["lines", "paragraphs"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_only_the_line_that_is_no_text_is_lost(tmp_path: Path, format_: str, suffix: str) -> None:
    content = b"one\n\n" + BYTES_THAT_ARE_NO_TEXT + b"\ntwo\n\nthree"
    path = tmp_path / f"a.txt{suffix}"
    compress: dict[str, Any] = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
    }
    path.write_bytes(compress[suffix](content))
    told: list[str] = []
    assert read(path, told, format=format_) == ["one", "two", "three"]
    (message,) = told
    assert message.startswith(f"{path}, line 3: not utf-8; set encoding to the file's own")


@pytest.mark.parametrize(
    ("name", "content", "expected", "messages"),
    [
        (
            "a.jsonl",
            b'{"text": "1"}\n{"text":\n[1]\n{"body": "x"}\n{"text": null}\n{"text": 7}\n\n'
            b'{"text": "\\ud800"}\n{"text": "caf\xe9"}\n{"text": "\\ud83d\\ude00"}\n'
            + b"[" * 100_000
            + b'\n{"text": '
            + b"1" * 5000
            + b'}\n{"text": "2"}',
            ["1", "\U0001f600", "2"],
            [
                "line 2: not JSON",
                "line 3: not a JSON object",
                "line 4: no column 'text'; it has 'body'",
                "line 5: column 'text' is empty",
                "line 6: column 'text' holds no text but a value of type int",
                "line 8: column 'text' has half of a surrogate pair",
                "line 9: not utf-8",
                "line 11: not JSON",
                "line 12: not JSON",
            ],
        ),
        (
            "a.csv",
            b'id,text\n1,one\n2\n\n3,a,b\n4,caf\xe9\n5,"two\r\nlines"\ncaf\xe9,x\n6,last\n',
            ["one", "two\r\nlines", "last"],
            [
                "line 3: column 'text' is empty",
                "line 5: more fields than the header has",
                "line 6: not utf-8",
                "line 9: not utf-8",
            ],
        ),
        ("a.csv", b"id,body\n1,one\n2,two\n", [], ["no column 'text'; it has 'id', 'body'"]),
        ("a.csv", b"", [], ["there is no text in it"]),
        ("a.csv", b"caf\xe9,text\n1,one\n", [], ["line 1: not utf-8"]),
        ("a.txt", b"\n \n", [], ["there is no text in it"]),
        ("a.txt", b"", [], ["there is no text in it"]),
        ("a.txt.gz", b"\x1f\x8b no more", [], ["cannot be read after its beginning"]),
        ("a.parquet", b"PAR1 and no more", [], ["not a readable Parquet file"]),
    ],
)
def test_each_malformed_thing_is_told_once_and_reading_goes_on(
    tmp_path: Path, name: str, content: bytes, expected: list[str], messages: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    told: list[str] = []
    assert read(path, told) == expected
    assert len(told) == len(messages), told
    for message, wanted in zip(told, messages, strict=True):
        assert message.startswith(str(path))
        assert wanted in message
    with pytest.raises(DataError, match="a\\."):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_documents_before_the_break_of_a_cut_file_are_kept(
    tmp_path: Path, name: str, suffix: str
) -> None:
    numbers = [f"{number} {number * 7919 % 1000003}" for number in range(30_000)]
    form = '{{"text": "{}"}}' if name == "a.jsonl" else "{}"
    lines = ["text"] * (name == "a.csv") + [form.format(number) for number in numbers]
    content = ("\n".join(lines) + "\n").encode()
    compressed = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(compressed[: len(compressed) * 4 // 5])
    told: list[str] = []
    kept = read(path, told)
    assert len(kept) > 10_000
    assert kept == numbers[: len(kept)]
    (message,) = told
    assert f"cannot be read after line {len(kept) + (name == 'a.csv')}: " in message


def test_text_file_that_is_no_text_is_lost_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" + BYTES_THAT_ARE_NO_TEXT)
    told: list[str] = []
    assert read(path, told, format="text") == []
    (message,) = told
    assert f"{path}, line 2: not utf-8" in message


def test_paragraphs_are_parted_by_lines_of_whitespace(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n one\r\ntwo\r\n \t\r\nthree\n\u3000\n\n\nfour ".encode())
    assert read(path, format="paragraphs") == ["one\r\ntwo", "three", "four"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp037", "utf-7"])
def test_encodings_in_which_a_byte_is_no_line_end_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    # U+0A0A and U+0D0A have the bytes of line ends in UTF-16.
    odd = "" if encoding == "cp037" else " \u0a0a\u0d0a"
    path.write_bytes(f"one{odd}\ntwo\n".encode(encoding))
    assert read(path, encoding=encoding) == [f"one{odd}", "two"]


def test_what_is_no_utf_16_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\n".encode("utf-16-le") + b"\x00\xd8\n\x00" + "two".encode("utf-16-le"))
    told: list[str] = []
    assert read(path, told, encoding="utf-16-le") == ["one", "two"]
    (message,) = told
    assert "line 2: not utf-16-le" in message


def test_a_column_without_text_is_told_once_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [1, 2], "body": ["a", None]}), path)
    told: list[str] = []
    assert read(path, told) == []
    assert told == [f"{path}: column 'text' holds no text but int64; set text to one that does"]
    told.clear()
    assert read(path, told, text="body") == ["a"]
    assert told == [f"{path}, row 2: column 'body' is empty"]


def test_missing_file_is_never_left_out(tmp_path: Path) -> None:
    for name in ("a.txt", "a.parquet", "a.csv.gz"):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / name, [])


def test_document_of_50_megabytes_is_read_in_every_format(tmp_path: Path) -> None:
    text = "word " * 10_000_000 + "end"
    source = text.encode()
    (tmp_path / "a.txt").write_bytes(source)
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(source, 1))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + source + b'"}\n')
    (tmp_path / "a.csv").write_bytes(b"text\n" + source + b"\n")
    pyarrow.parquet.write_table(pa.table({"text": ["small", text]}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "a.txt") == [text]
    assert read(tmp_path / "a.txt", format="text") == [text]
    assert read(tmp_path / "a.txt", format="paragraphs") == [text]
    assert read(tmp_path / "a.txt.zst") == [text]
    assert read(tmp_path / "a.jsonl") == [text]
    assert read(tmp_path / "a.csv") == [text]
    assert read(tmp_path / "a.parquet") == ["small", text]
    assert read(tmp_path / "saved", format="dataset") == [text]


def test_hub_name_stays_a_name_unless_there_is_such_a_folder(tmp_path: Path) -> None:
    assert documents.expand("org/name", tmp_path, "dataset") == ["org/name"]
    with pytest.raises(DataError, match="no such file"):
        documents.expand("org/name", tmp_path, "lines")
    with pytest.raises(DataError, match="no such file"):
        documents.expand("org/name/more", tmp_path, "dataset")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert documents.expand("org/name", tmp_path, "dataset") == [str(tmp_path / "org" / "name")]
    with pytest.raises(DataError, match=r"is a folder; name its files, for example org/name/\*"):
        documents.expand("org/name", tmp_path, "lines")


def test_a_name_with_characters_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    folder = tmp_path / "[odd]"
    (folder / "below").mkdir(parents=True)
    for name in ("a[1].txt", "a1.txt", "below/a.txt"):
        (folder / name).touch()
    assert documents.expand("a[1].txt", folder) == [str(folder / "a[1].txt")]
    assert documents.expand("**/a*.txt", folder) == sorted(map(str, folder.rglob("*.txt")))
    assert documents.expand("*", folder) == sorted(map(str, folder.glob("*.txt")))


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("abfs", "azure")])
def test_missing_client_of_a_store_is_told_with_its_extra(
    tmp_path: Path, scheme: str, extra: str
) -> None:
    with pytest.raises(DataError, match=rf"pip install 'pretune\[{extra}\]'"):
        documents.expand(f"{scheme}://bucket/*.txt", tmp_path)


def test_data_set_behind_a_url_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="for example format: parquet"):
        documents.expand("s3://bucket/saved", tmp_path, "dataset")


@given(st.text(alphabet="ab \u3000\n"), st.integers(1, 7))
def test_parts_are_the_text_cut_before_spaces(text: str, limit: int) -> None:
    found = list(documents.parts(text, limit))
    assert "".join(found) == text
    assert all(1 <= len(part) <= limit for part in found)
    for part, following in pairwise(found):
        assert following.startswith(" ") or (len(part) == limit and " " not in part[1:])
