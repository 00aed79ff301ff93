from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import tiny_pipeline
from typer.testing import CliRunner

from workflows import cli, history, known_clusters, submission
from workflows.config import ConfigError
from workflows.execution import RunPaths
from workflows.journal import DRIVER, Journal
from workflows.storage import Storage
from workflows.submission import Prepared, Wanted, check_run_id, prepare


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "pipeline.yaml"
    data = tiny_pipeline(folder) | {"storage": "s3://bucket/tiny"} | changes
    file.write_text(yaml.safe_dump(data))
    return file


def test_what_is_sent(folder: Path, scratch: Path) -> None:
    wanted = Wanted(
        written(folder),
        overrides=["pretrain.seed=3", "name=odd one"],
        run_id="nightly",
        environment={"A": "1"},
        metadata={"team": "nlp"},
        driver_resources={"head": 0.001},
    )
    with pytest.raises(ConfigError, match="name: String should match"):
        prepare(wanted, None, scratch)
    wanted = Wanted(**{**vars(wanted), "overrides": ["pretrain.seed=3"]})
    sent = prepare(wanted, "s3://bucket/a b", scratch)
    assert sent.storage == "s3://bucket/a b"
    assert sent.job.package is not None
    assert sent.job.package.files == ("corpus.txt", "pipeline.yaml", "places.txt", "tone.csv")
    request = sent.job.as_request()
    assert request == {
        "submission_id": "nightly",
        "entrypoint": "pretune run pipeline.yaml --run-id=nightly --set=pretrain.seed=3 "
        "'--set=storage=s3://bucket/a b' --set=cluster.address=auto",
        "metadata": {
            "team": "nlp",
            "pretune_pipeline": "tiny",
            "pretune_package": sent.job.package.name,
            "pretune_driver_on": "head",
        },
        "runtime_env": {"env_vars": {"A": "1"}, "working_dir": sent.job.package.uri},
        "entrypoint_resources": {"head": 0.001},
    }


def test_the_same_twice_is_the_same_and_unnamed_runs_have_names_of_their_own(
    folder: Path, scratch: Path
) -> None:
    file = written(folder)
    named = [prepare(Wanted(file, run_id="a"), None, scratch).job.as_request() for _ in range(2)]
    assert named[0] == named[1]
    ids = {prepare(Wanted(file), None, scratch).job.submission_id for _ in range(3)}
    assert len(ids) == 3
    assert all(one.startswith("tiny-20") for one in ids)


def test_files_in_the_image_are_not_sent(scratch: Path) -> None:
    wanted = Wanted(Path("/etc/pretune/Nightly_v2.yaml"), in_image=True)
    with pytest.raises(ConfigError, match="give --storage"):
        prepare(wanted, None, scratch)
    sent = prepare(wanted, "s3://bucket/x", scratch)
    assert sent.job.package is None
    assert sent.job.submission_id.startswith("nightly-v2-20")
    assert sent.job.entrypoint.startswith(
        "pretune run /etc/pretune/Nightly_v2.yaml --run-id=nightly-v2-"
    )


def test_the_working_folder_may_be_larger_than_that_of_the_file(
    folder: Path, scratch: Path
) -> None:
    file = written(folder)
    deep = folder / "pipelines"
    deep.mkdir()
    data = yaml.safe_load(file.read_text())
    data["corpus"]["sources"] = [{"path": "../*.txt"}]
    for name, task in data["tasks"].items():
        task["data"]["path"] = f"../{Path(task['data']['path']).name}"
        assert (folder / Path(task["data"]["path"]).name).exists(), name
    (deep / "p.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as told:
        prepare(Wanted(deep / "p.yaml"), None, scratch)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("corpus.sources.0.path: ../*.txt is outside of ")
    assert "a --working-dir that holds both" in lines[0]
    assert sorted(line.split(":")[0] for line in lines[1:]) == [
        "tasks.places.data (train)",
        "tasks.tone.data (train)",
    ]
    sent = prepare(Wanted(deep / "p.yaml", working_dir=folder), None, scratch)
    assert "run pipelines/p.yaml" in sent.job.entrypoint
    with pytest.raises(ConfigError, match=r"p\.yaml is not in --working-dir"):
        prepare(Wanted(deep / "p.yaml", working_dir=scratch), None, scratch)


@pytest.mark.parametrize(
    ("prepare_files", "why"),
    [
        (lambda folder: (folder / ".gitignore").write_text("*.csv"), "an ignore file leaves it"),
        (lambda folder: (folder / "tone.csv").unlink(), "it is not there"),
    ],
)
def test_data_that_would_be_missing_there_is_told_here(
    folder: Path, scratch: Path, prepare_files: Any, why: str
) -> None:
    file = written(folder)
    prepare_files(folder)
    with pytest.raises(ConfigError, match=rf"tasks\.tone\.data \(train\): tone\.csv .*: {why}"):
        prepare(Wanted(file), None, scratch)


def test_files_that_hold_a_token_are_not_sent(folder: Path, scratch: Path) -> None:
    file = written(folder)
    (folder / "token").write_text("secret")
    sent = prepare(Wanted(file, secrets=[folder / "token"]), None, scratch)
    assert sent.job.package is not None
    assert "token" not in sent.job.package.files


def test_data_elsewhere_is_the_clusters_own_affair(folder: Path, scratch: Path) -> None:
    file = written(folder, corpus={"sources": [{"path": "/data/*.txt"}, {"path": "s3://b/x.txt"}]})
    assert prepare(Wanted(file), None, scratch).job.package


def test_a_storage_that_would_vanish_is_refused(folder: Path, scratch: Path) -> None:
    file = written(folder, storage="./pretune-data")
    with pytest.raises(ConfigError, match=r"storage: \./pretune-data is a folder relative.*give"):
        prepare(Wanted(file), None, scratch)
    inside = folder / "store"
    (inside / "artifacts").mkdir(parents=True)
    (inside / "artifacts" / "large").write_text("x")
    sent = prepare(Wanted(file), str(inside), scratch)
    assert sent.job.package is not None
    assert not any(name.startswith("store") for name in sent.job.package.files)


@pytest.mark.parametrize("run_id", ["Upper", "", "-a", "a-", "a" * 64, "a b", "a/b", "../a"])
def test_names_that_are_none_everywhere(run_id: str) -> None:
    with pytest.raises(ConfigError, match="--run-id"):
        check_run_id(run_id)


def test_where_a_run_was_submitted_to_is_found_by_its_name(tmp_path: Path) -> None:
    assert submission.visible(str(tmp_path / "nowhere")) is None
    where = submission.visible(str(tmp_path))
    assert where is not None
    paths = RunPaths(where, "nightly")
    assert submission.address_of(paths) is None
    earlier = Journal(where, paths.events, DRIVER)
    earlier.append("run", outcome="failed", said=["an earlier attempt"])
    submission.note(paths, "tiny", "http://head:8265", is_new=False)
    assert history.view(paths).outcome == "failed"
    submission.note(paths, "tiny", "http://head:8265", is_new=True)
    assert history.view(paths, of_driver=True).outcome is None
    assert submission.address_of(paths) == "http://head:8265"
    (run,) = history.runs(where)
    assert (run.run_id, run.pipeline) == ("nightly", "tiny")


def test_a_storage_does_not_say_who_gets_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    asked: list[str] = []
    monkeypatch.setattr(requests.Session, "request", lambda *given, **_: asked.append(given[2]))
    where = Storage.at(tmp_path)
    submission.note(RunPaths(where, "nightly"), "tiny", "http://elsewhere:8265", is_new=True)

    def status(*more: str) -> str:
        command = ["status", "nightly", "--storage", str(tmp_path), *more]
        return CliRunner().invoke(cli.app, command).output

    assert "is not asked until you give --address http://elsewhere:8265 once" in status()
    assert not asked
    status("--address", "http://elsewhere:8265")  # the user himself names it
    assert len(asked) == 1
    status()
    assert asked == ["http://elsewhere:8265/api/jobs/nightly"] * 2
    assert known_clusters.is_known("http://127.0.0.1:8265")
    assert not known_clusters.is_known("http://127.0.0.1.example.org:8265")


def test_runs_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    where = Storage.at(tmp_path)
    where.write("runs/zeta/plan.json", b'{"started": "20260101-000000", "pipeline": "b"}')
    where.write("runs/tiny-20260301-000000-ab12/plan.json", b"{}")
    where.write("runs/alpha/submission.json", b'{"started": "20260201-000000", "pipeline": "a"}')
    where.write("runs/killed/events/run.jsonl", b"")
    assert history.run_ids(where) == ["killed", "zeta", "alpha", "tiny-20260301-000000-ab12"]


def test_prepared_names_the_pipeline(folder: Path, scratch: Path) -> None:
    prepared = prepare(Wanted(written(folder)), None, scratch)
    assert isinstance(prepared, Prepared)
    assert prepared.pipeline == "tiny"
