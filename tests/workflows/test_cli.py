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
    ["validate"],
    ["plan"],
    ["run"],
    ["status"],
    ["models", "list"],
    ["models", "show"],
    ["predict"],
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


def test_plan_tells_what_would_run_and_writes_nothing(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    path = write_pipeline(tmp_path, pipeline)
    rows = json.loads(pretune("plan", path, "--json", folder=tmp_path).stdout)
    assert {row["plan"] for row in rows} == {"RUN"}
    assert len(rows) == 14
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
    assert "no Ray cluster answers at cluster.address 127.0.0.1:1" in answer.stderr
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--storage", "nowhere"),
        ("models", "show", "tiny.tone", "--storage", "nowhere"),
        ("predict", "tiny.tone", "text", "--storage", "nowhere"),
        ("validate", "nowhere.yaml"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    answer = pretune(*arguments, folder=tmp_path)
    assert answer.returncode == 2
    assert "nowhere" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_empty_store_has_no_models(tmp_path: Path) -> None:
    answer = pretune("models", "list", "--json", folder=tmp_path)
    assert json.loads(answer.stdout) == []
