import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline
from typer.testing import CliRunner

from workflows import cli

PRETUNE = str(Path(sys.executable).with_name("pretune"))

COMMANDS = [
    ["init"],
    ["validate"],
    ["plan"],
    ["run"],
    ["adopt"],
    ["extend"],
    ["status"],
    ["stop"],
    ["gc"],
    ["models", "list"],
    ["models", "show"],
    ["models", "sync"],
    ["predict"],
    ["compare"],
    ["report"],
    ["doctor"],
    ["drain"],
]


def pretune(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [PRETUNE, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(cli.app, [*command, "--help"])
    assert answer.exit_code == 0
    assert f"pretune {' '.join(command)}" in " ".join(answer.stdout.split())
    assert "Example:" in answer.stdout


def test_doctor_refuses_an_address_of_ray_client_in_one_line(tmp_path: Path) -> None:
    answer = pretune("doctor", "--address", "ray://head:10001", folder=tmp_path)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith("--address ray://head:10001: ray:// (Ray Client) cannot run Ray Train")


def test_drain_says_in_one_line_that_no_ray_is_there(tmp_path: Path) -> None:
    answer = pretune("drain", "--address", "127.0.0.1:1", folder=tmp_path)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith("no Ray cluster answers at 127.0.0.1:1: ")


def test_plan_tells_what_would_run_and_writes_nothing(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    rows = json.loads(pretune("plan", path, "--json", folder=tmp_path).stdout)
    assert {row["plan"] for row in rows} == {"RUN"}
    assert len(rows) == 16
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pretrain.sequence_lenght=8", "did you mean 'sequence_length'?"),
        ("corpus.sources.0=1", "is no section"),
        ("tasks.tone.data.label=tone", "no column 'tone'"),
        ("tasks.tone.data.path=none.csv", "no such file"),
        ("tasks.tone.max_length=65", "longer than the model's 64 positions"),
    ],
)
def test_bad_input_is_one_message_exit_code_2_and_nothing_written(
    tmp_path: Path, pipeline: dict[str, Any], command: str, override: str, expected: str
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    answer = pretune(command, path, "--set", override, folder=tmp_path)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert not (tmp_path / "storage").exists()


@pytest.mark.ray
def test_more_workers_than_the_cluster_holds_are_refused_and_nothing_is_written(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    pipeline["pretrain"]["global_batch_tokens"] = 64 * 512
    pipeline["pretrain"]["tokens"] = 64 * 512
    pipeline["cluster"]["pretrain"]["workers"] = 512
    answer = pretune("run", write_pipeline(tmp_path, pipeline), folder=tmp_path)
    assert answer.returncode == 2
    assert "512 workers" in answer.stderr
    assert "lower cluster.pretrain.workers" in answer.stderr
    assert not (tmp_path / "storage").exists()


def test_address_where_no_cluster_answers_is_refused_and_nothing_is_written(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    pipeline["cluster"]["address"] = "127.0.0.1:1"
    answer = pretune("run", write_pipeline(tmp_path, pipeline), folder=tmp_path)
    assert answer.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in answer.stderr
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--storage", "nowhere"),
        ("models", "show", "tiny.tone", "--storage", "nowhere"),
        ("predict", "tiny.tone", "--text", "text", "--storage", "nowhere"),
        ("validate", "nowhere.yaml"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    answer = pretune(*arguments, folder=tmp_path)
    assert answer.returncode == 2
    assert "nowhere" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("task", "trials", "expected"),
    [
        ("tona", "+2", "no task 'tona'; did you mean 'tone'?"),
        ("tone", "-2", "--trials -2: expected a number of further trials, such as +20"),
        ("tone", "+0", "expected a number of further trials"),
        ("tone", "+2", "tone.tune has no finished search yet; run the pipeline first"),
    ],
)
def test_search_that_cannot_be_extended_is_refused(
    tmp_path: Path, pipeline: dict[str, Any], task: str, trials: str, expected: str
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    answer = pretune("extend", path, task, "--trials", trials, folder=tmp_path)
    assert answer.returncode == 2
    assert expected in " ".join(answer.stderr.split())
    assert not (tmp_path / "storage").exists()


def test_empty_store_has_no_models(tmp_path: Path) -> None:
    answer = pretune("models", "list", "--json", folder=tmp_path)
    assert json.loads(answer.stdout) == []


@pytest.mark.parametrize("command", ["plan", "run"])
def test_unknown_step_is_refused_with_the_nearest(
    tmp_path: Path, pipeline: dict[str, Any], command: str
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    answer = pretune(command, path, "--force", "pretrian", folder=tmp_path)
    assert answer.returncode == 2
    assert "no step 'pretrian' in this pipeline; did you mean 'pretrain'?" in answer.stderr
    assert not (tmp_path / "storage").exists()


def test_step_whose_inputs_are_missing_is_not_run_alone(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    answer = pretune("run", path, "--only", "tokenizer", folder=tmp_path)
    assert answer.returncode == 2
    assert "tokenizer needs corpus; run them first, or leave --only out" in answer.stderr
    planned = pretune("plan", path, "--only", "tokenizer", "--json", folder=tmp_path)
    (row,) = [row for row in json.loads(planned.stdout) if row["step"] == "tokenizer"]
    assert (row["plan"], row["why"]) == ("BLOCKED", "needs corpus")
    assert not (tmp_path / "storage").exists()


def test_adopted_checkpoint_is_planned_as_done(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    path, base = write_pipeline(tmp_path, pipeline), tmp_path / "base"
    base.mkdir()
    refused = pretune("adopt", path, "pretrain", base, folder=tmp_path)
    assert refused.returncode == 2
    assert "no config.json there" in refused.stderr
    assert not (tmp_path / "storage").exists()
    for name in ("config.json", "tokenizer.json"):
        (base / name).write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(10))
    answer = pretune("adopt", path, "pretrain", base, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "pretrain: took in 3 files, 14 bytes" in answer.stdout
    rows = json.loads(pretune("plan", path, "--json", folder=tmp_path).stdout)
    plans = {row["step"]: row["plan"] for row in rows}
    assert plans["pretrain"] == "REUSE"
    assert plans["tokens"] == "NOT NEEDED"
    assert plans["tone.tune"] == "RUN"
    again = pretune("adopt", path, "pretrain", base, folder=tmp_path)
    assert again.returncode == 2
    assert "has an output already" in again.stderr


def test_garbage_is_told_and_removed_only_when_asked(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    """An adopted step that no run planned is garbage."""
    path, base = write_pipeline(tmp_path, pipeline), tmp_path / "base"
    storage = tmp_path / "storage"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    assert pretune("adopt", path, "tokenizer", base, folder=tmp_path).returncode == 0
    told = pretune("gc", "--storage", storage, folder=tmp_path)
    assert "1 files and folders, 2 bytes would be removed; add --delete" in told.stdout
    assert list(storage.glob("artifacts/tokenizer/*/*/output/tokenizer.json"))
    removed = pretune("gc", "--storage", storage, "--delete", "--json", folder=tmp_path)
    assert [row["why"] for row in json.loads(removed.stdout)] == ["no kept run planned this step"]
    assert not list(storage.rglob("tokenizer.json"))
    assert "0 files and folders" in pretune("gc", "--storage", storage, folder=tmp_path).stdout


def test_a_run_that_never_got_far_has_a_report_and_no_other_run_has_one(tmp_path: Path) -> None:
    storage, page = tmp_path / "data", tmp_path / "page.html"
    head = {"pipeline": "tiny", "started": "", "steps": {"corpus": ["corpus", "f" * 64]}}
    plan = storage / "runs" / "early" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps(head))
    where = ("--storage", storage)
    answer = pretune("report", "early", *where, "--output", page, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert f"{page}: {page.stat().st_size:,} bytes" in answer.stdout.replace("\n", "")
    assert "not done" in page.read_text()
    assert [path.name for path in plan.parent.iterdir()] == ["plan.json"]
    other = pretune("report", "late", *where, folder=tmp_path)
    assert other.returncode == 2
    assert "no run 'late' in" in other.stderr
    assert "the newest is early" in other.stderr
    nowhere = pretune("report", *where, "--output", tmp_path / "no" / "page", folder=tmp_path)
    assert nowhere.returncode == 2
    assert "No such file or directory" in nowhere.stderr


def test_stop_of_no_run_is_refused(tmp_path: Path) -> None:
    answer = pretune("stop", "--storage", tmp_path, folder=tmp_path)
    assert answer.returncode == 2
    assert "no runs in" in answer.stderr
