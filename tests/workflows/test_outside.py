import gzip
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import write_classification, write_pipeline
from huggingface_hub import constants

from trainers import task_data
from trainers.task_types.classification import Classification
from workflows.config import ConfigError, load_config
from workflows.outside import OutsideData, inspect, pinned


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


OPENED: list[str] | None = None
"""Paths of files that Python opened while somebody counts them."""


def note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(note_opening)


@contextmanager
def opened_files(folder: Path) -> Iterator[list[str]]:
    """The data files below a folder that are opened inside."""
    global OPENED  # an audit hook cannot be taken away
    OPENED, found = [], []
    yield found
    below = [path for path in OPENED if path.startswith(f"{folder}/")]
    found += [path for path in below if not path.endswith("pipeline.yaml")]
    OPENED = None


def write_many_sources(folder: Path, pipeline: dict[str, Any]) -> list[Path]:
    """10,000 files of every format and a tokenizer's folder, all in the pipeline."""
    (folder / "many").mkdir()
    for number in range(10_000):
        (folder / "many" / f"{number:05d}.txt").write_text(f"document {number}")
    (folder / "a.jsonl").write_text('{"text": "one"}\n')
    (folder / "b.csv").write_text("id,text\n1,one\n")
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"one"))
    pyarrow.parquet.write_table(pa.table({"text": ["one"]}), folder / "d.parquet")
    for name in ("saved", "tokenizer"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "part").write_bytes(b"\xff\x00")
        (folder / name / "tokenizer.json").write_text("{}")
    paths = ["many/*.txt", "a.jsonl", "b.csv", "c.txt.gz", "d.parquet"]
    pipeline["corpus"]["sources"] = [
        *({"path": path} for path in paths),
        {"path": "saved", "format": "dataset"},
    ]
    pipeline["tokenizer"] = {"from": "tokenizer"}
    return [path for path in folder.rglob("*") if path.is_file()]


def test_second_plan_of_10000_unchanged_files_opens_none(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    files = write_many_sources(tmp_path, pipeline)
    time.sleep(2.1)  # what changed in the last two seconds is not remembered
    with opened_files(tmp_path) as opened:
        first = look(tmp_path, pipeline)
    unused = {"corpus.txt", "pipeline.yaml"}
    assert {str(path) for path in opened} == {str(p) for p in files if p.name not in unused}
    with opened_files(tmp_path) as opened:
        assert look(tmp_path, pipeline) == first
    assert opened == []

    changed = tmp_path / "many" / "07000.txt"
    changed.write_text("document 7OOO")
    part = tmp_path / "tokenizer" / "deep" / "part"
    part.write_bytes(b"\xff\x01")
    with opened_files(tmp_path) as opened:
        second = look(tmp_path, pipeline)
    assert opened == [str(changed), str(part)]
    assert {path for path in first.corpus if first.corpus[path] != second.corpus[path]} == {
        str(changed)
    }
    assert first.tokenizer != second.tokenizer


def test_other_column_is_checked_without_opening_the_file(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    time.sleep(2.1)
    look(tmp_path, pipeline)
    pipeline["tasks"]["tone"]["data"]["text"] = "body"
    with (
        opened_files(tmp_path) as opened,
        pytest.raises(ConfigError, match=r"tone\.csv: no column 'body'; set text to one of 'text'"),
    ):
        look(tmp_path, pipeline)
    assert opened == []


def test_other_encoding_is_checked_anew(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"caf\xe9\n")
    pipeline["corpus"]["sources"][0]["encoding"] = "latin-1"
    time.sleep(2.1)
    look(tmp_path, pipeline)
    pipeline["corpus"]["sources"][0]["encoding"] = "utf-8"
    with pytest.raises(ConfigError, match="line 1: not utf-8"):
        look(tmp_path, pipeline)


def test_byte_order_mark_is_no_part_of_the_first_column(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    plain = tmp_path / "plain.csv"
    write_classification(plain)
    (tmp_path / "tone.csv").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert look(tmp_path, pipeline).tasks["tone"]


def test_file_of_a_byte_order_mark_alone_has_no_text(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(ConfigError, match="there is no text in it"):
        look(tmp_path, pipeline)


def test_line_of_a_wrong_byte_counts_behind_a_byte_order_mark(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"\xef\xbb\xbffine\ncaf\xe9\n")
    with pytest.raises(ConfigError, match="line 2: not utf-8"):
        look(tmp_path, pipeline)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A Hugging Face hub with the commits of data sets, by `name/revision`."""
    commits: dict[str, str] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, revision = self.path.removeprefix("/api/datasets/").partition("/revision/")
            commit = commits.get(f"{name}@{revision}" if revision else name)
            content = json.dumps({"id": name, "sha": commit}).encode()
            self.send_response(200 if commit else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield commits
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_data_set_is_its_commit(
    tmp_path: Path, pipeline: dict[str, Any], hub: dict[str, str]
) -> None:
    hub |= {"org/name": "1" * 40, "org/name@v2": "2" * 40}
    pipeline["corpus"]["sources"] = [
        {"path": "org/name", "format": "dataset"},
        {"path": "org/name", "format": "dataset", "revision": "v2"},
    ]
    found = look(tmp_path, pipeline).corpus
    assert found == {"org/name": "1" * 40, "org/name@v2": "2" * 40}
    sources = load_config(tmp_path / "pipeline.yaml").corpus.sources
    assert [pinned(source, found).revision for source in sources] == ["1" * 40, "2" * 40]
    assert pinned(sources[0], {}) == sources[0]


def test_hub_data_set_that_nobody_knows_is_told_with_the_way_out(
    tmp_path: Path, pipeline: dict[str, Any], hub: dict[str, str]
) -> None:
    pipeline["corpus"]["sources"] = [{"path": "org/none", "format": "dataset"}]
    with pytest.raises(ConfigError, match=r"(?s)org/none: no such folder.*hf download"):
        look(tmp_path, pipeline)


def test_remote_file_is_known_by_its_tag_and_not_read(
    tmp_path: Path, pipeline: dict[str, Any], s3: str
) -> None:
    client, folder = boto3.client("s3"), uuid.uuid4().hex
    pipeline["corpus"]["sources"] = [{"path": f"{s3}/{folder}/*.txt"}]

    def plan(**contents: bytes) -> Mapping[str, str]:
        for name, content in contents.items():
            client.put_object(Bucket="bucket", Key=f"{folder}/{name}.txt", Body=content)
        return look(tmp_path, pipeline).corpus

    with pytest.raises(ConfigError, match="no file there"):
        plan()
    first = plan(a=b"caf\xe9", b=b"two")  # wrongly encoded, which only reading tells
    a, b = f"{s3}/{folder}/a.txt", f"{s3}/{folder}/b.txt"
    assert list(first) == [a, b]
    assert all(len(digest) == 64 for digest in first.values())
    assert first[a] != first[b]
    time.sleep(1.1)  # a time of change would differ
    assert plan(a=b"caf\xe9") == first
    second = plan(a=b"cafe")
    assert second[b] == first[b]
    assert second[a] != first[a]


def test_rows_of_a_task_may_be_behind_a_url(
    tmp_path: Path, pipeline: dict[str, Any], s3: str
) -> None:
    place = f"{s3}/{uuid.uuid4().hex}/tone.csv"
    content = (tmp_path / "tone.csv").read_bytes()

    def put(content: bytes) -> str:
        boto3.client("s3").put_object(Bucket="bucket", Key=place.split("/", 3)[3], Body=content)
        ((path, digest),) = look(tmp_path, pipeline).tasks["tone"].values()
        assert path == place
        return digest

    data = pipeline["tasks"]["tone"]["data"]
    data["path"] = place
    with pytest.raises(ConfigError, match=r"tone\.csv: "):
        look(tmp_path, pipeline)
    first = put(content)
    assert put(content) == first
    assert put(content + b"\nmore,good") != first
    read = tmp_path / "read"
    read.mkdir()
    config = load_config(tmp_path / "pipeline.yaml").tasks["tone"]
    facts = task_data.prepare(config.data, Classification, tmp_path, read)
    assert sum(facts["rows"].values()) == 241
    data["label"] = "mood"
    with pytest.raises(ConfigError, match="no column 'mood'; set label to one of 'text', 'label'"):
        look(tmp_path, pipeline)
    data |= {"label": "label", "path": place.replace("tone.csv", "*.csv")}
    assert put(content) == first
    boto3.client("s3").put_object(
        Bucket="bucket", Key=place.split("/", 3)[3].replace("tone", "two"), Body=content
    )
    with pytest.raises(ConfigError, match="2 files match"):
        look(tmp_path, pipeline)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.txt", b"caf\xe9"),
        ("corpus.txt", b""),
        ("a.jsonl", b"no JSON\n"),
        ("a.csv", b"body\none\n"),
        ("a.parquet", b"no Parquet"),
    ],
)
def test_what_is_in_a_file_is_refused_only_where_nothing_is_to_be_left_out(
    tmp_path: Path, pipeline: dict[str, Any], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    pipeline["corpus"]["sources"] = [{"path": name}]
    with pytest.raises(ConfigError, match=name):
        look(tmp_path, pipeline)
    pipeline["corpus"]["malformed"] = "skip"
    assert list(look(tmp_path, pipeline).corpus) == [str(tmp_path / name)]


@pytest.mark.parametrize("change", [{"path": "none.txt"}, {"encoding": "utf-9"}])
def test_what_is_wrong_in_the_pipeline_file_is_refused_always(
    tmp_path: Path, pipeline: dict[str, Any], change: dict[str, str]
) -> None:
    pipeline["corpus"] |= {"malformed": "skip", "sources": [{"path": "corpus.txt"} | change]}
    with pytest.raises(ConfigError, match=r"no such file|unknown encoding"):
        look(tmp_path, pipeline)


def test_data_set_of_a_task_is_a_folder_with_its_columns(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    import datasets

    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(9)]
    saved = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    data = pipeline["tasks"]["tone"]["data"]
    data |= {"path": "saved/train", "format": "dataset"}
    ((path, digest),) = look(tmp_path, pipeline).tasks["tone"].values()
    assert len(digest) == 64
    assert path == str(tmp_path / "saved" / "train")
    data["label"] = "tone"
    with pytest.raises(ConfigError, match="no column 'tone'; set label to one of 'text', 'label'"):
        look(tmp_path, pipeline)
    data |= {"path": "saved", "label": "label"}
    with pytest.raises(ConfigError, match="holds several splits; name one, for example"):
        look(tmp_path, pipeline)
    data["path"] = "nobody/nowhere"
    with pytest.raises(ConfigError, match="no such folder; a task's data set is a local one"):
        look(tmp_path, pipeline)
