"""Versions of a store label files: here, and part by part."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import WORDS, save_classifier
from typer.testing import CliRunner

from cluster.capacity import CapacityError
from cluster.config import WorkerConfig
from cluster.interface import TaskFailedError
from cluster.local import LocalCluster
from trainers import inference as labelling
from trainers.errors import DataError
from trainers.pieces import Shard
from workflows import inference
from workflows.cli import app
from workflows.inference import Labelled, Model
from workflows.models import ModelStore, ModelStoreError
from workflows.storage import Storage, StorageError

NAME = "tiny.tone"
TASK: dict[str, Any] = {
    "type": "classification",
    "metric": "accuracy",
    "max_length": 64,
    "data": {"path": "tone.csv", "split": {"test": 0.2, "validation": 0.2}},
}
TEXTS = [" ".join(WORDS[number : number + 3]) for number in range(40)]
ONE = WorkerConfig()


def add(where: Storage, folder: Path, **changed: Any) -> Model:
    facts = {"fingerprint": "f", "attempt": "a", "task": TASK, "scores": {}, **changed}
    return Model(where, ModelStore(where).add(NAME, folder, **facts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model"), ("bad", "good"))


@pytest.fixture
def model(local: Storage, folder: Path) -> Model:
    return add(local, folder)


def shards(model: Model, source: str) -> list[Shard]:
    return inference.parts_of(source, model.task)


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), path, row_group_size=10)
    return path


def write_lines(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_a_file_appears_whole_or_not_at_all(model: Model, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    output = tmp_path / "out" / "labels.parquet"
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        inference.label_file(model, str(source), output, use_gpu=False)
    output.parent.mkdir()
    done = inference.label_file(model, str(source), output, use_gpu=False)
    assert done == Labelled(rows=40, parts=1)
    whole = output.read_bytes()
    assert pyarrow.parquet.read_table(output).column("text").to_pylist() == TEXTS
    with source.open("a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(DataError, match="line 41: column 'text' holds no text"):
        inference.label_file(model, str(source), output, use_gpu=False)
    assert output.read_bytes() == whole
    assert list(output.parent.iterdir()) == [output]


def test_a_folder_is_no_output_file(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").mkdir()
    source = write_lines(tmp_path / "in.jsonl")
    with pytest.raises(DataError, match="is a folder; name a file"):
        inference.label_file(model, str(source), tmp_path / "out.jsonl", use_gpu=False)


def test_files_are_read_in_the_encoding_of_the_task(
    local: Storage, folder: Path, tmp_path: Path
) -> None:
    data = {**TASK["data"], "encoding": "latin-1"}
    model = add(local, folder, task={**TASK, "data": data})
    (tmp_path / "in.txt").write_text("Käse\n", encoding="latin-1")
    found = io.BytesIO()
    inference.label_file(model, str(tmp_path / "in.txt"), found, use_gpu=False)
    assert json.loads(found.getvalue())["text"] == "Käse"


def test_of_several_files_rows_come_in_their_order(model: Model, tmp_path: Path) -> None:
    for name, texts in (("b", TEXTS[:3]), ("a", TEXTS[3:5])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    found = io.BytesIO()
    inference.label_file(model, f"{tmp_path}/*.txt", found, use_gpu=False)
    rows = [json.loads(line) for line in found.getvalue().splitlines()]
    assert [row["text"] for row in rows] == [*TEXTS[3:5], *TEXTS[:3]]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere.jsonl", "no such file"),
        ("what a lovely flight", "the suffix says nothing of its rows.*--text"),
        ("folder.docx", "the suffix says nothing"),
    ],
)
def test_what_is_no_input_is_refused(model: Model, source: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        inference.label_file(model, source, io.BytesIO(), use_gpu=False)


def test_a_damaged_model_labels_nothing(model: Model, local: Storage, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    place = local.path(ModelStore(local).files(model.version)) / "model.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    with pytest.raises(ModelStoreError, match=r"model\.safetensors has other bytes"):
        inference.label_file(model, str(source), tmp_path / "out.jsonl", use_gpu=False)
    assert not (tmp_path / "out.jsonl").exists()


def test_model_of_a_step_of_the_users_own_is_not_asked(local: Storage, folder: Path) -> None:
    with pytest.raises(ModelStoreError, match="made by a step of your own"):
        _ = add(local, folder, task={}).task


def test_parts_of_a_failed_run_are_reused_and_those_of_others_refused(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = add(storage, folder)
    output = Storage(f"{storage.root}/labelled")
    source = str(write_parquet(tmp_path / "in.parquet"))
    monkeypatch.setattr(inference, "_PART_BYTES", 100)
    label, calls = labelling.label, []

    def failing(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return label(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "label", failing)
        with pytest.raises(TaskFailedError, match="the disk is gone"):
            inference.label_on_cluster(model, shards(model, source), output, LocalCluster(), ONE)
    assert set(output.find("")) == {"_plan.json", "part-000000.parquet", "part-000001.parquet"}
    done = inference.label_on_cluster(model, shards(model, source), output, LocalCluster(), ONE)
    assert done == Labelled(rows=20, parts=4, reused=2)
    parts = sorted(name for name in output.find("") if name.startswith("part-"))
    tables = [pyarrow.parquet.read_table(io.BytesIO(output.read(part))) for part in parts]
    assert [text for table in tables for text in table.column("text").to_pylist()] == TEXTS
    assert "_SUCCESS" in output.find("")

    other = add(storage, folder, attempt="b", fingerprint="g")
    with pytest.raises(DataError, match="predictions of another model, or of other rows"):
        inference.label_on_cluster(other, shards(other, source), output, LocalCluster(), ONE)
    pyarrow.parquet.write_table(pa.table({"text": TEXTS[:30]}), source, row_group_size=10)
    with pytest.raises(DataError, match="predictions of another model, or of other rows"):
        inference.label_on_cluster(model, shards(model, source), output, LocalCluster(), ONE)


def test_a_folder_with_other_files_is_refused(model: Model, local: Storage, tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "in.jsonl"))
    local.write("mine/notes.txt", b"")
    output = Storage(local.url("mine"))
    with pytest.raises(DataError, match="has other files; give a new folder"):
        inference.label_on_cluster(model, shards(model, source), output, LocalCluster(), ONE)
    assert set(output.find("")) == {"notes.txt"}


def test_more_than_the_cluster_has_is_refused(model: Model, local: Storage, tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "in.jsonl"))
    output = Storage(local.url("labelled"))
    with pytest.raises(CapacityError, match=r"1 GPUs, but the whole cluster has .* and 0 GPUs"):
        inference.label_on_cluster(
            model, shards(model, source), output, LocalCluster(), WorkerConfig(gpus=1)
        )
    assert not output.find("")


def predict(model: Model, *arguments: object, stdin: str | None = None) -> Any:
    storage = ("--storage", model.storage.root)
    given = ["predict", str(model.version), *map(str, arguments), *storage]
    return CliRunner().invoke(app, given, input=stdin)


def test_command_labels_a_file(model: Model, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    told = predict(model, source, "--output", tmp_path / "out.jsonl")
    assert told.exit_code == 0, told.output
    assert "40 rows labelled" in told.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    texts = [argument for text in TEXTS for argument in ("--text", text)]
    shown = json.loads(predict(model, *texts, "--json").stdout)
    assert [row["prediction"] for row in shown] == [row["prediction"] for row in rows]
    for line in predict(model, "--text", TEXTS[0]).stdout.splitlines():
        assert line.startswith(rows[0]["prediction"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give one INPUT, or texts with --text"),
        (("in.jsonl", "--text", "a"), "give one INPUT, or texts with --text"),
        (("in.jsonl", "--output", "out.csv"), "predictions are written as .jsonl or .parquet"),
        (("nowhere.jsonl",), "nowhere.jsonl: no such file"),
        (("--text", "a", "--output", "out.jsonl"), "--text prints; leave --output out"),
        (("in.jsonl", "--address", "auto"), "--address and --cpus are for Ray"),
        (("in.jsonl", "--cpus", "2", "--output", "out.jsonl"), "--address and --cpus are for Ray"),
        (("in.jsonl", "--output", "s3://bucket/out.jsonl"), "a URL is a folder of parts"),
        (("in.jsonl", "--gpu"), "there is no GPU"),
        (("in.jsonl", "--output", "folder", "--address", "ray://x:1"), "Ray Client"),
        (("in.jsonl", "--output", "folder", "--address", "127.0.0.1:1"), "no Ray cluster answers"),
        (("-", "--output", "folder"), "standard input cannot be cut into parts"),
        (("nowhere.jsonl", "--output", "folder"), "no such file"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl")
    before = set(tmp_path.iterdir())
    answer = predict(model, *arguments)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert answer.stdout == ""
    assert set(tmp_path.iterdir()) == before


PRETUNE = str(Path(sys.executable).with_name("pretune"))


def test_standard_input_goes_on_where_it_stands(model: Model, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    predict = f"{PRETUNE} predict {NAME}@1 - --storage {model.storage.root}"
    told = subprocess.run(
        ["sh", "-c", f"{{ read skipped; {predict}; }} < {source}"], capture_output=True, check=True
    )
    assert [json.loads(line)["text"] for line in told.stdout.splitlines()] == TEXTS[1:]


def test_rows_go_through_a_pipe(model: Model, tmp_path: Path) -> None:
    told = subprocess.run(
        [PRETUNE, "predict", f"{NAME}@1", "-", "--storage", model.storage.root],
        input=write_lines(tmp_path / "in.jsonl").read_bytes(),
        capture_output=True,
        check=True,
    )
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert {row["prediction"] for row in rows} == {"bad", "good"}


@pytest.mark.ray
def test_parts_are_labelled_on_ray(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet")
    command = [PRETUNE, "predict", f"{NAME}@1", f"{tmp_path}/?.parquet", "--json"]
    command += ["--output", str(tmp_path / "out"), "--storage", model.storage.root]
    done = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert done == {"rows": 80, "parts": 1, "reused": 0}  # both are small, and go together
    found = pyarrow.parquet.read_table(tmp_path / "out").column("text").to_pylist()
    assert found == [*TEXTS, *TEXTS]
    again = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert again == {"rows": 0, "parts": 1, "reused": 1}
