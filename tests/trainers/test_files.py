import gzip
import os
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from trainers import documents, files, pieces
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.files import Lines
from trainers.pieces import END, Span


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder on a web server that cannot read from the middle of a file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(s3: str) -> str:
    """The URL of a new folder on an object store."""
    return f"{s3}/{uuid.uuid4().hex}"


def put(url: str, content: bytes) -> None:
    name, _, key = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=name, Key=key, Body=content)


def read_all(source: SourceConfig, base: Path, shard_bytes: int) -> list[str]:
    places = documents.expand(source.path, base, source.format)
    shards = pieces.cut(source, 0, places, shard_bytes)
    return [text for shard in shards for text in documents.read(shard)]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        *((name, True) for name in ("utf-8", "UTF8", "utf-8-sig", "ascii", "latin-1", "cp1252")),
        *((name, True) for name in ("koi8-r", "gb18030", "shift_jis", "big5", "euc_jp")),
        *((name, False) for name in ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")),
        *((name, False) for name in ("iso2022_jp", "hz")),
    ],
)
def test_encodings_in_which_each_newline_byte_is_a_line_end(encoding: str, expected: bool) -> None:
    assert files.has_byte_lines(encoding) is expected


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0\n1\n2\n3\n4\n")
    for start in range(10):
        lines = Lines(str(path), "utf-8", pytest.fail, start)
        places = [(lines.position, lines.where(), line) for line in lines]
        first = (start + 1) // 2
        assert places == [(2 * n, f"line {n + 1}", f"{n}\n") for n in range(first, 5)]


def test_line_far_behind_the_beginning_is_named_by_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 31)  # takes no room on a disk
        file.seek(1 << 31)
        file.write(b"\nfine\ncaf\xe9\n")
    told: list[str] = []
    lines = Lines(str(path), "utf-8", told.append, (1 << 31) - 100)
    assert [line for line in lines if lines.is_sound(line)] == ["fine\n"]
    assert told[0].startswith(f"{path}, line at byte {(1 << 31) + 6}: not utf-8")


def test_frames_with_a_long_window_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    path.write_bytes(compressor.compressobj().compress(b"") + _stream(compressor, b"one\n" * 9))
    with files.plain(str(path)) as file:
        assert file.read() == b"one\n" * 9


def _stream(compressor: zstandard.ZstdCompressor, content: bytes) -> bytes:
    stream = compressor.compressobj()
    return bytes(stream.compress(content) + stream.flush())


def test_what_the_system_cannot_read_is_never_taken_for_damaged_data(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    for place in ("a.parquet", "a.parquet/b.txt.gz"):
        with pytest.raises(DataError, match=r"is a folder|no such file"):
            files.opened(str(tmp_path / place))


def test_an_error_of_the_disk_while_reading_parquet_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["x" * 100] * 50_000}), path, compression=None)
    whole = files._Stored.readinto

    def broken(self: files._Stored, buffer: memoryview) -> int:
        if self.tell() < 1000:
            with files._told("a.parquet"):
                raise OSError(5, "Input/output error")
        return whole(self, buffer)

    monkeypatch.setattr(files._Stored, "readinto", broken)
    shard = pieces.Shard(SourceConfig(path="a.parquet"), 0, (Span(str(path), 0, END),))  # type: ignore[call-arg]
    with pytest.raises(DataError, match=r"Input/output error; this lies not in its content"):
        list(documents.read(shard, lambda message: None))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv", "a.jsonl", "a.parquet"])
def test_files_of_an_object_store_are_found_cut_and_read(
    tmp_path: Path, bucket: str, name: str
) -> None:
    texts = [f"document {number}" for number in range(2000)]
    path = tmp_path / name
    match name:
        case "a.txt.gz":
            path.write_bytes(gzip.compress("\n".join(texts).encode()))
        case "a.parquet":
            pyarrow.parquet.write_table(pa.table({"text": texts}), path, row_group_size=100)
        case _:
            head = "text\n" if name == "a.csv" else ""
            form = '{{"text": "{}"}}\n' if name == "a.jsonl" else "{}\n"
            path.write_text(head + "".join(map(form.format, texts)))
    for part in ("2", "1"):
        put(f"{bucket}/part {part}/{name}", path.read_bytes())
    source = SourceConfig(path=f"{bucket}/*/{name}")  # type: ignore[call-arg]
    assert documents.expand(source.path, tmp_path) == [
        f"{bucket}/part 1/{name}",
        f"{bucket}/part 2/{name}",
    ]
    assert read_all(source, tmp_path, 4096) == texts * 2


def test_what_an_object_store_does_not_have_is_told(tmp_path: Path, bucket: str) -> None:
    put(f"{bucket}/a.txt", b"one")
    for missing in (f"{bucket}/b.txt", f"{bucket}/*.csv", bucket, "s3://none-such/*.txt"):
        with pytest.raises(DataError, match=r"no such file|no file there|cannot be read"):
            documents.expand(missing, tmp_path)


def test_newly_written_files_are_found(tmp_path: Path, bucket: str) -> None:
    put(f"{bucket}/a.txt", b"one")
    assert len(documents.expand(f"{bucket}/*.txt", tmp_path)) == 1
    put(f"{bucket}/b.txt", b"two")
    assert len(documents.expand(f"{bucket}/*.txt", tmp_path)) == 2


def test_unknown_kind_of_url_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        documents.expand("nowhere://a/b.txt", tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_files_of_a_web_server_are_streamed(tmp_path: Path, web: str, name: str) -> None:
    texts = [f"{number} {number * 7919 % 1000003}" for number in range(400_000)]
    content = "\n".join(texts).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    source = SourceConfig(path=f"{web}/{name}?download=true", format="lines")
    assert read_all(source, tmp_path, 4096) == texts
    with pytest.raises(DataError, match="no such file"):
        documents.expand(f"{web}/none.txt", tmp_path)
