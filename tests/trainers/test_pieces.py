import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers import documents, pieces
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.files import Lines
from trainers.pieces import END, Shard, Span

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n", "\r\n\r\n", "\n\u3000\n"])
WORDS = st.text(alphabet="ab é\u20ac\U0001f600\u2028\x85", max_size=6)
TEXTS = st.lists(st.tuples(WORDS, LINE_ENDS), max_size=12).map(
    lambda found: "".join(word + end for word, end in found)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


def read_all(shards: list[Shard], told: list[str] | None = None) -> list[str]:
    tell = None if told is None else told.append
    return [text for shard in shards for text in documents.read(shard, tell)]


def cut(source: SourceConfig, places: list[Path], shard_bytes: int) -> list[Shard]:
    return pieces.cut(source, 0, [str(place) for place in places], shard_bytes)


def expected_documents(text: str, source_format: str) -> list[str]:
    """What a whole file holds, said in another way than the code says it."""
    if source_format == "lines":
        return [line.strip() for line in text.split("\n") if line.strip()]
    found, held = [], ""
    for line in [*text.split("\n"), ""]:
        if line.strip():
            held += line + "\n"
        elif held:
            found.append(held.strip())
            held = ""
    return found


@pytest.mark.parametrize("source_format", ["lines", "paragraphs"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@given(text=TEXTS, last=WORDS, shard_bytes=st.integers(1, 40))
def test_documents_are_read_once_wherever_a_file_is_cut(
    folder: Path, source_format: str, encoding: str, text: str, last: str, shard_bytes: int
) -> None:
    path = folder / "a.txt"
    path.write_bytes((text + last).encode(encoding))
    source = SourceConfig(path="a.txt", format=source_format, encoding=encoding)  # type: ignore[arg-type]
    told: list[str] = []
    shards = cut(source, [path], shard_bytes)
    assert read_all(shards, told) == expected_documents(text + last, source_format)
    assert set(told) <= {f"{path}: there is no text in it"}


@given(
    texts=st.lists(st.text(max_size=8)),
    borders=st.sets(st.integers(1, 300)),
    gap=st.sampled_from(["", "\n", " \r\n"]),
)
def test_json_lines_are_read_once_wherever_a_file_is_cut(
    folder: Path, texts: list[str], borders: set[int], gap: str
) -> None:
    path = folder / "a.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=not gap) for text in texts]
    path.write_bytes(f"\n{gap}".join(["", *rows]).encode("utf-8", "surrogatepass"))
    source = SourceConfig(path="a.jsonl")  # type: ignore[call-arg]
    edges = [0, *sorted(borders), END]
    spans = [Span(str(path), *edge) for edge in pairwise(edges)]
    expected = [stripped for text in texts if (stripped := text.strip())]
    found = read_all([Shard(source, 0, (span,)) for span in spans], [])
    assert found == expected


@given(
    lines=st.lists(st.sampled_from([b"fine", b"", b"caf\xe9", b"\xff"])),
    shard_bytes=st.integers(1, 12),
    source_format=st.sampled_from(["lines", "paragraphs"]),
)
def test_each_bad_line_is_told_once_with_its_number_in_the_file(
    folder: Path, lines: list[bytes], shard_bytes: int, source_format: Any
) -> None:
    path = folder / "b.txt"
    path.write_bytes(b"\n".join([b"x", *lines]))
    told: list[str] = []
    source = SourceConfig(path="b.txt", format=source_format)
    read_all(cut(source, [path], shard_bytes), told)
    bad = [number for number, line in enumerate(lines, start=2) if line in {b"caf\xe9", b"\xff"}]
    assert [message.partition(":")[0] for message in told] == [
        f"{path}, line {number}" for number in bad
    ]


def test_large_files_are_cut_and_small_ones_put_together(tmp_path: Path) -> None:
    sizes = [10, 10, 1000, 10, 10, 250, 10]
    paths = [tmp_path / f"{number}.txt" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"x" * (size - 1) + b"\n")
    source = SourceConfig(path="*.txt", format="lines")
    shards = cut(source, paths, 100)
    assert shards == cut(source, paths, 100)
    bytes_of = [sum(span.stop - span.start for span in shard.spans) for shard in shards]
    assert sum(bytes_of) == sum(sizes)
    assert max(bytes_of) <= 150
    assert [len(shard.spans) for shard in shards] == [2, *[1] * 10, 2, 1, 1, 1]
    assert [span.file for shard in shards for span in shard.spans if span.start == 0] == [
        str(path) for path in paths
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.txt.gz", {}),
        ("a.csv", {}),
        ("a.txt", {"format": "text"}),
        ("a.txt", {"encoding": "utf-16"}),
    ],
)
def test_what_cannot_be_cut_is_one_span(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"x\n" * 1000)
    source = SourceConfig(path=name, **settings)
    assert cut(source, [path], 100) == [Shard(source, 0, (Span(str(path), 0, END),))]


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pa.table({"text": texts, "n": range(1000)}), path, row_group_size=50
    )
    source = SourceConfig(path="a.parquet")  # type: ignore[call-arg]
    shards = cut(source, [path], path.stat().st_size // 4)
    assert 4 <= len(shards) <= 7
    assert read_all(shards) == texts
    assert cut(source, [path], 1 << 20) == [Shard(source, 0, (Span(str(path), 0, END),))]


def test_rows_of_a_parquet_file_are_numbered_through_its_spans(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [None if number in {3, 60} else "x" for number in range(1, 101)]
    pyarrow.parquet.write_table(pa.table({"text": texts}), path, row_group_size=10)
    told: list[str] = []
    read_all(cut(SourceConfig(path="a.parquet"), [path], 64), told)  # type: ignore[call-arg]
    assert told == [f"{path}, row {n}: column 'text' is empty" for n in (3, 60)]


def test_unreadable_parquet_is_one_span_that_is_told_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no Parquet" * 100)
    source = SourceConfig(path="a.parquet")  # type: ignore[call-arg]
    shards = cut(source, [path], 100)
    told: list[str] = []
    assert read_all(shards, told) == []
    assert len(told) == 1


def test_rows_of_a_saved_data_set_are_cut(tmp_path: Path) -> None:
    texts: list[str | None] = [f"text {number}" for number in range(1000)]
    texts[700] = None
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"id": range(1000), "text": texts}).save_to_disk(str(folder))
    source = SourceConfig(path="saved", format="dataset")
    shards = cut(source, [folder], 4096)
    assert len(shards) > 4
    told: list[str] = []
    assert read_all(shards, told) == [text for text in texts if text]
    assert told == [f"{folder}, row 701: column 'text' is empty"]


def test_folder_of_plain_files_is_streamed_shard_by_shard(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(3):
        rows = [{"text": f"{number} {row}"} for row in range(4)]
        content = "\n".join(map(json.dumps, rows))
        (folder / f"train-{number}.jsonl").write_text(content)
        (folder / f"test-{number}.jsonl").write_text(content.replace('"text": "', '"text": "t'))
    source = SourceConfig(path="plain", format="dataset")
    shards = cut(source, [folder], 1 << 20)
    assert [shard.spans for shard in shards] == [(Span(str(folder), n, n + 1),) for n in range(3)]
    expected = [f"{number} {row}" for number in range(3) for row in range(4)]
    assert read_all(shards) == expected
    tested = source.model_copy(update={"split": "test"})
    assert read_all(cut(tested, [folder], 1 << 20)) == [f"t{text}" for text in expected]
    (folder / "train-1.jsonl").write_text('{"text": "one"}\n{"text": \n')
    told: list[str] = []
    assert [text for text in read_all(shards, told) if text in expected] == (
        expected[:4] + expected[8:]
    )
    assert len(told) == 1
    assert told[0].startswith(f"{folder}, shard 1 of 3: cannot be read after row ")
    with pytest.raises(DataError, match="check path, subset, split and revision"):
        cut(source.model_copy(update={"split": "other"}), [folder], 1 << 20)


READ_IN_SHARDS = """
import re, sys
from pathlib import Path
from trainers import documents, pieces
from trainers.config import SourceConfig
source = SourceConfig(path="x", format=sys.argv[2])
# Not getrusage: a new process inherits its parent's maximum there.
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024
before = peak()
shards = pieces.cut(source, 0, [sys.argv[1]], 16 << 20)
print(len(shards), sum(1 for shard in shards for _ in documents.read(shard)), peak() - before)
"""


@pytest.mark.parametrize("source_format", ["jsonl", "parquet"])
def test_memory_stays_flat_over_a_file_of_100_megabytes(tmp_path: Path, source_format: str) -> None:
    path = tmp_path / "a"
    text = random.Random(0).randbytes(1024).hex()
    count = 50_000
    if source_format == "jsonl":
        with path.open("w") as file:
            file.writelines(f'{{"text": "{n} {text}"}}\n' for n in range(count))
    else:
        # One row group: it is read page by page.
        schema = pa.schema([("text", pa.string())])
        with pyarrow.parquet.ParquetWriter(
            path, schema, compression="none", use_dictionary=False
        ) as writer:
            table = pa.table({"text": [f"{n} {text}" for n in range(count)]})
            writer.write_table(table, row_group_size=count)
    answer = subprocess.run(
        [sys.executable, "-c", READ_IN_SHARDS, str(path), source_format],
        capture_output=True,
        text=True,
        check=True,
    )
    shards, documents_read, growth_bytes = map(int, answer.stdout.split())
    assert (shards, documents_read) == (6 if source_format == "jsonl" else 1, count)
    assert growth_bytes < 60e6


def test_a_span_without_a_beginning_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one paragraph\n" * 1000)
    lines = Lines(str(path), "utf-8", pytest.fail, 1000)
    assert list(documents._paragraphs(lines, 1000, 2000)) == []
    assert 2000 <= lines.position < 2020
