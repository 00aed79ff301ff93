"""A run's name: who may have it, and what is written under it when it is used again."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_pipeline
from typer.testing import CliRunner

from workflows import cli, history, progress
from workflows.config import ConfigError, load_config
from workflows.session import Session, summary_lines
from workflows.storage import Storage


def opened(folder: Path, run_id: str | None = None, **changes: Any) -> Session:
    data = tiny_pipeline(folder)
    data["pretrain"] |= changes
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(data))
    return Session.open(load_config(folder / "pipeline.yaml"), folder, run_id=run_id)


def test_a_run_of_that_name_is_gone_on_with_and_its_request_to_stop_is_over(tmp_path: Path) -> None:
    first = opened(tmp_path, "nightly")
    first.write_head(first.plan())
    head = history.head(first.paths.storage, "nightly")
    first.paths.storage.write(first.paths.stop, b"")
    first.write_end(progress.STOPPED, ["stopped; run it again"])
    view = history.view(first.paths)
    assert (view.outcome, view.said) == ("stopped", ["stopped; run it again"])

    second = opened(tmp_path, "nightly")
    second.write_head(second.plan())
    assert history.head(first.paths.storage, "nightly") == head
    assert not first.paths.storage.exists(first.paths.stop)
    assert history.view(first.paths).outcome is None
    second.write_end(progress.SUCCEEDED, [])
    assert history.view(first.paths, of_driver=True).outcome == "succeeded"


def test_who_was_asked_to_stop_stays_stopped_when_it_is_started_again(tmp_path: Path) -> None:
    """As KubeRay does with a command that has failed."""
    first = opened(tmp_path, "nightly")
    first.write_head(first.plan())
    first.paths.ask_to_stop()
    command = ["run", str(tmp_path / "pipeline.yaml"), "--run-id", "nightly"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 4, answer.output
    assert first.paths.was_asked_to_stop
    assert history.view(first.paths).outcome is None


def test_a_run_that_goes_on_counts_as_new(tmp_path: Path) -> None:
    where = Storage.at(tmp_path / "storage")
    first = opened(tmp_path, "nightly")
    first.write_head(first.plan())
    told = json.loads(where.read("runs/nightly/plan.json")) | {"started": "20200101-000000"}
    where.write("runs/nightly/plan.json", json.dumps(told).encode())
    where.write("runs/other/plan.json", b'{"started": "20210101-000000", "pipeline": "tiny"}')
    assert history.run_ids(where) == ["nightly", "other"]
    first.write_head(first.plan())
    assert history.run_ids(where) == ["other", "nightly"]


def test_a_run_of_that_name_about_other_steps_is_left_alone(tmp_path: Path) -> None:
    first = opened(tmp_path, "nightly")
    first.write_head(first.plan())
    with pytest.raises(ConfigError, match="nightly: there is a run of this name, and there base"):
        opened(tmp_path, "nightly", seed=9)
    assert opened(tmp_path, seed=9).paths.run_id != "nightly"


@pytest.mark.parametrize("name", ["Nightly", "../nightly", "a b"])
def test_names_are_checked_before_anything_is_looked_at(tmp_path: Path, name: str) -> None:
    answer = CliRunner().invoke(cli.app, ["run", str(tmp_path / "none.yaml"), "--run-id", name])
    assert isinstance(answer.exception, ConfigError)
    assert "--run-id" in str(answer.exception)


def test_what_there_is_nothing_of_has_no_line_at_the_end() -> None:
    summary = {
        "states": {"a": "done", "b": "reused", "c": "done"},
        "promotions": {"p": {"model": "t.a@1", "outcome": "promoted", "reason": "better"}},
        "report": "",
        "models": "/models",
        "mlflow": "",
    }
    assert summary_lines(summary) == [
        "2 steps done, 1 reused",
        "t.a@1 promoted: better",
        "models:  /models",
    ]


def test_head_and_end_are_written_on_every_kind_of_storage(
    tmp_path: Path, storage: Storage
) -> None:
    data = tiny_pipeline(tmp_path) | {"storage": storage.root}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(data))
    config = load_config(tmp_path / "pipeline.yaml")
    for run_id in ("nightly", "nightly", None):
        run = Session.open(config, tmp_path, run_id=run_id)
        run.write_head(run.plan())
        assert history.view(run.paths).outcome is None
        run.write_end(progress.FAILED, ["a line"])
        assert history.view(run.paths, of_driver=True).said == ["a line"]
