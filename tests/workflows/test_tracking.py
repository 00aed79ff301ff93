"""The mirror in MLflow, of a storage that was written here instead of by a run."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import write_pipeline
from mlflow import MlflowClient
from served_models import TASK, TEXTS, final, in_another_process, require_answers_of, save_model
from typer.testing import CliRunner

from trainers.config import Schema
from workflows import mlmodel, summaries, tracking
from workflows.artifacts import Artifacts, output_name
from workflows.cli import app
from workflows.config import load_config
from workflows.execution import RunPaths, StageContext, tracking_uri, without_secrets
from workflows.ledger import Position, Record
from workflows.models import ModelStore, Version
from workflows.pipeline import TrackSpec
from workflows.planning import State
from workflows.run_result import RunResult
from workflows.session import Session
from workflows.steps import Step
from workflows.storage import Storage

NAME = "tiny.tone"
FIRST, SECOND = "tiny-20261126-120000-aaaa", "tiny-20261127-120000-bbbb"
REASON = "0.9000 against 0.5000"


class Spec(Schema):
    """What the mirror reads of steps' configurations, and what tells two steps apart."""

    pretrain: dict[str, Any] = {"learning_rate": 0.003, "tokens": 5120}
    made_by: str


def finish(where: Storage, name: str, run: str, files: dict[str, Any]) -> Record:
    """A step's record and output, as a run leaves them."""
    step = Step(name, name.rpartition(".")[2], 1, Spec(made_by=run))
    return committed(where, step, run, {"model": f"{NAME}@1"}, files)


def committed(
    where: Storage, step: Step, run: str, facts: dict[str, Any], files: dict[str, Any]
) -> Record:
    artifacts = Artifacts(where)
    attempt = artifacts.begin(step, Position(), run, 60.0)
    assert attempt is not None
    for file, content in files.items():
        (attempt.output / file).write_text(json.dumps(content), encoding="utf-8")
    position = artifacts.commit(step, attempt, facts, run=run, elapsed_s=2.0)
    assert position is not None
    assert isinstance(position.entry, Record)
    return position.entry


TRIALS = [
    {
        "trial_id": "00000",
        "hyperparameters": {"learning_rate": 0.01},
        "history": [{"loss": 0.7}, {"loss": 0.5}],
        "status": "finished",
    },
    {
        "trial_id": "00001",
        "hyperparameters": {"learning_rate": 9.0},
        "history": [],
        "status": "failed",
    },
]


class World:
    """A storage with a run of every kind of step that is mirrored, and a folder to make models of.

    The curves of pretraining have more points than a server takes in one call.
    """

    def __init__(
        self, where: Storage, folder: Path, documents: Mapping[str, str] | None = None
    ) -> None:
        self.where, self.store, self.folder = where, ModelStore(where), folder
        self.documents = documents or {}
        points = [{"optimizer_step": step, "loss": 1 / step} for step in range(1, 601)]
        speeds = [{"optimizer_step": 600, "tokens_per_second": 2000.0}]
        where.create(f"runs/{FIRST}/plan.json", b"{}")
        self.records = [
            finish(where, "pretrain", FIRST, {"pretraining.json": _told(points, speeds)}),
            finish(where, "tone.tune", FIRST, {"trials.json": TRIALS}),
            finish(where, "tone.final", FIRST, {"final.json": {"test": {"accuracy": 0.9}}}),
            finish(where, "tone.promote", FIRST, {}),
        ]

    def add(self, attempt: str, run: str = FIRST) -> Version:
        steps = [{"name": one.name, "fingerprint": one.fingerprint} for one in self.records[:3]]
        return self.store.add(
            NAME,
            self.folder,
            fingerprint=self.records[2].fingerprint,
            attempt=attempt,
            task={},
            scores={"accuracy": 0.9},
            more={"judgement": {"reason": REASON}},
            documents={**self.documents, "lineage.json": json.dumps({"run": run, "steps": steps})},
        )

    def promote(self, version: Version, alias: str = "champion") -> None:
        expected = self.store.champion(NAME)
        self.store.promote(version, expected=expected, reason=REASON, run=FIRST, alias=alias)

    def track(self, uri: str, run: str = FIRST) -> tracking.Written:
        return tracking.track(uri, self.where, run, self.records)

    def sync(self, uri: str) -> tuple[int, int]:
        written = tracking.sync(uri, self.where)
        return written.runs, written.versions


def _told(points: list[Any], speeds: list[Any]) -> dict[str, Any]:
    return {"history": points, "speeds": speeds}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def world(storage: Storage, folder: Path) -> World:
    return World(storage, folder)


@pytest.fixture
def here(local: Storage, folder: Path) -> World:
    return World(local, folder)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow takes seconds for it."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """An embedded database that knows nothing."""
    return _database(tmp_path / "mlflow.db", empty_database)


def _database(path: Path, empty: Path) -> str:
    shutil.copyfile(empty, path)
    return f"sqlite:///{path}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    s3: str, tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[str]:
    """The URL of an `mlflow server` in processes of its own."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", _database(folder / "server.db", empty_database)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)


def picture(uri: str) -> dict[str, Any]:
    """All that MLflow tells, without the ids that it gives."""
    client = MlflowClient(uri)
    experiments = {one.name: one.experiment_id for one in client.search_experiments()}
    runs = client.search_runs([experiments["tiny"]])
    names = {run.info.run_id: run.info.run_name for run in runs}
    return {
        "runs": sorted((_run(client, run, names) for run in runs), key=str),
        "models": {
            model.name: {
                "aliases": {alias: str(number) for alias, number in model.aliases.items()},
                "versions": {
                    str(one.version): (
                        names[one.run_id],
                        one.source.replace(one.run_id, names[one.run_id]),
                        one.description,
                        one.tags,
                    )
                    for one in client.search_model_versions(f"name = '{model.name}'")
                },
            }
            for model in client.search_registered_models()
            if model.name.startswith("tiny.")
        },
    }


def _run(client: MlflowClient, run: Any, names: dict[str, str]) -> tuple[Any, ...]:
    curves = {
        metric: [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]
        for run_id in [run.info.run_id]
        for metric in run.data.metrics
    }
    parent = names.get(run.data.tags.get("mlflow.parentRunId"))
    times = (run.info.start_time, run.info.end_time)
    return (run.info.run_name, parent, run.info.status, times, run.data.params, curves)


def test_runs_curves_versions_aliases_and_lineage_are_in_mlflow(world: World, uri: str) -> None:
    champion, candidate = world.add("a"), world.add("b")
    world.promote(champion)
    world.promote(candidate, "candidate")
    world.store.tag(champion, {"reviewed by": "ann@home"})
    written = world.track(uri)
    assert (written.runs, written.versions) == (4, 2)

    told = picture(uri)
    runs = {run[0]: run[1:] for run in told["runs"]}
    assert runs.keys() == {FIRST, "pretrain", "tone.tune.00000", "tone.tune.00001"}
    assert {runs[name][0] for name in runs.keys() - {FIRST}} == {FIRST}
    parent, status, _, params, curves = runs["pretrain"]
    assert (parent, status, params["learning_rate"]) == (FIRST, "FINISHED", "0.003")
    assert curves["loss"] == [(step, 1 / step) for step in range(1, 601)]
    assert curves["tokens_per_second"] == [(600, 2000.0)]
    assert runs["tone.tune.00000"][3:] == (
        {"learning_rate": "0.01"},
        {"loss": [(1, 0.7), (2, 0.5)]},
    )
    assert runs["tone.tune.00001"][1] == "FAILED"
    assert runs[FIRST][4] == {"tone.test.accuracy": [(0, 0.9)]}

    model = told["models"][NAME]
    assert model["aliases"] == {"champion": "1", "candidate": "2"}
    made_by, source, description, tags = model["versions"]["1"]
    assert (made_by, description) == (FIRST, REASON)
    is_copied = world.where.is_local
    place = f"file://{world.where.root}/mlflow-artifacts/{FIRST}/artifacts/models/{NAME}/1"
    assert source == (place if is_copied else world.store.folder(champion))
    assert tags["pretune.folder"] == world.store.folder(champion)
    assert tags["pretune.version"] == "1"
    assert tags["pretune.score.accuracy"] == "0.9"
    assert tags["pretune.tag.reviewed by"] == "ann@home"
    fingerprints = {one.name: one.fingerprint for one in world.records[:3]}
    assert tags["pretune.fingerprint"] == fingerprints["tone.final"]
    assert {name: tags[f"pretune.step.{name}"] for name in fingerprints} == fingerprints


def test_a_run_is_found_by_its_tag_and_has_its_own_times(here: World, uri: str) -> None:
    here.track(uri)
    client = MlflowClient(uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`pretune.run` = '{FIRST}'")
    assert run.info.run_name == FIRST
    assert run.info.start_time == 1795694400_000  # 12:00 of that day, UTC
    assert run.info.end_time >= run.info.start_time


def test_written_again_nothing_is_there_twice(here: World, uri: str) -> None:
    here.promote(here.add("a"))
    here.track(uri)
    before = picture(uri)
    again = here.track(uri)
    assert (again.runs, again.versions) == (0, 0)
    assert here.sync(uri) == (0, 0)
    assert picture(uri) == before


def test_a_mirror_that_was_lost_is_rebuilt_from_the_storage(
    world: World, uri: str, tmp_path: Path, empty_database: Path
) -> None:
    world.promote(world.add("a"))
    world.promote(world.add("b"), "candidate")
    world.track(uri)
    other = _database(tmp_path / "other.db", empty_database)
    assert world.sync(other) == (4, 2)
    assert picture(other) == picture(uri)


def test_an_experiment_that_was_deleted_comes_back(here: World, uri: str) -> None:
    here.track(uri)
    before, client = picture(uri), MlflowClient(uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    client.delete_experiment(experiment.experiment_id)
    assert here.sync(uri) == (0, 0)
    assert picture(uri) == before


def test_what_a_run_reuses_stays_in_the_run_that_computed_it(here: World, uri: str) -> None:
    here.where.create(f"runs/{SECOND}/plan.json", b"{}")
    here.records[1] = finish(here.where, "tone.tune", SECOND, {"trials.json": TRIALS})
    here.track(uri, SECOND)
    parents = {(run[0], run[1]) for run in picture(uri)["runs"]}
    assert parents == {
        (FIRST, None),
        (SECOND, None),
        ("pretrain", FIRST),
        ("tone.tune.00000", SECOND),
        ("tone.tune.00001", SECOND),
    }
    assert here.sync(uri) == (2, 0)  # the first run's own search


def test_what_was_cut_off_is_written_anew_and_what_is_whole_stays(here: World, uri: str) -> None:
    here.track(uri)
    before, client = picture(uri), MlflowClient(uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    (pretrain,) = [run for run in runs if run.info.run_name == "pretrain"]
    client.update_run(pretrain.info.run_id, status="RUNNING")
    assert here.sync(uri) == (1, 0)
    assert picture(uri) == before


def test_a_run_that_was_begun_and_no_more_is_ended(here: World, uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.create_experiment("tiny")
    client.create_run(experiment, tags={"pretune.run": FIRST}, run_name=FIRST)
    assert here.track(uri).runs == 3
    assert {run[2] for run in picture(uri)["runs"] if run[0] == FIRST} == {"FINISHED"}


def test_steps_whose_artifacts_are_gone_are_left_out(here: World, uri: str) -> None:
    for record in here.records[:2]:
        here.where.delete(output_name(record))
    assert here.sync(uri) == (1, 0)
    assert [run[0] for run in picture(uri)["runs"]] == [FIRST]


def test_aliases_and_notes_follow_the_store_and_all_else_is_left_alone(
    here: World, uri: str
) -> None:
    first, second = here.add("a"), here.add("b")
    here.promote(first)
    here.promote(second, "candidate")
    here.store.tag(second, {"reviewed": "yes", "by": "ann"})
    here.track(uri)
    client = MlflowClient(uri)
    client.set_model_version_tag(NAME, "2", "mine", "kept")
    client.set_registered_model_alias(NAME, "mine", "1")

    here.promote(second)
    here.store.tag(second, {"reviewed": "no", "by": ""})
    assert here.sync(uri) == (0, 0)
    model = picture(uri)["models"][NAME]
    assert model["aliases"] == {"champion": "2", "mine": "1"}
    tags = model["versions"]["2"][3]
    assert (tags["pretune.tag.reviewed"], tags["mine"]) == ("no", "kept")
    assert "pretune.tag.by" not in tags


def test_a_version_that_no_run_made_has_a_run_of_its_own(here: World, uri: str) -> None:
    here.store.add(NAME, here.folder, fingerprint="f", attempt="a", task={}, scores={})
    assert here.sync(uri) == (5, 1)
    assert picture(uri)["models"][NAME]["versions"]["1"][0] == f"{NAME}@1"


def test_another_storage_with_the_same_numbers_is_not_taken_for_this_one(
    here: World, uri: str, tmp_path: Path
) -> None:
    here.promote(here.add("a"))
    here.track(uri)
    other = World(Storage.at(tmp_path / "other"), here.folder)
    other.promote(other.add("a"))
    assert other.sync(uri)[1] == 1
    model = picture(uri)["models"][NAME]
    tags = model["versions"][model["aliases"]["champion"]][3]
    assert tags["pretune.folder"] == other.store.folder(other.store.resolve(NAME))


def test_a_damaged_version_is_told_and_the_others_are_mirrored(
    here: World, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, whole = here.add("a"), here.add("b")
    here.promote(damaged)
    here.promote(whole)
    entry = here.where.path(f"models/{NAME}/versions/000001.json")
    entry.write_text(entry.read_text().replace("0.9", "1.0"))
    assert here.sync(uri) == (4, 1)
    assert "tiny.tone@1 is not in MLflow" in caplog.text
    assert picture(uri)["models"][NAME]["aliases"] == {"champion": "1"}  # MLflow's own numbers


ASKED = """
import json, sys
import mlflow, pandas
frame = pandas.DataFrame({"text": json.loads(sys.argv[2])})
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(frame).to_json(orient="records"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "begin"), [("local", "mlflow-artifacts:/"), ("remote", "s3://bucket/")]
)
def test_a_server_gives_the_champion_to_another_process(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, place: str, begin: str
) -> None:
    """Files on a disk are uploaded, once; of an object store it is told the place."""
    model = save_model(tmp_path / "classifier")
    storage: Storage = request.getfixturevalue(place)
    world = World(storage, model, mlmodel.documents(TASK, final()))
    version = world.add("a")
    world.promote(version)
    world.promote(world.add("b"), "candidate")
    world.track(server)
    before = picture(server)
    registered = before["models"][NAME]
    source = registered["versions"][registered["aliases"]["champion"]][1]
    assert source.startswith(begin)
    told = in_another_process(
        *("-c", ASKED, f"models:/{NAME}@champion", json.dumps(TEXTS)),
        folder=tmp_path,
        MLFLOW_TRACKING_URI=server,
    )
    require_answers_of(model, json.loads(told.splitlines()[-1]))
    assert world.store.damage(version) is None
    # What is gone could not be uploaded again.
    world.where.delete(f"{world.store.files(version)}/config.json")
    assert world.sync(server) == (0, 0)
    assert picture(server) == before


def test_a_server_that_is_down_costs_a_warning_that_names_the_way_out(
    here: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here.promote(here.add("a"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{free_port()}")
    run = SimpleNamespace(paths=RunPaths(here.where, FIRST))
    records = {record.name: record for record in here.records}
    spec = TrackSpec(name="tiny", tensorboard=False)
    asked = SimpleNamespace(run=run, records=records, spec=lambda kind: spec)
    context = cast("StageContext", asked)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "workflows"):
        facts = summaries.track(context)
    assert time.monotonic() - begun < 30
    (warning,) = [one.getMessage() for one in caplog.records if one.name == "workflows.summaries"]
    assert facts["error"] == warning
    assert f"pretune models sync --storage {here.where.root}" in warning
    assert "secret" not in f"{facts}"
    assert here.store.champion(NAME) == Version(NAME, 1)
    answer = CliRunner().invoke(app, ["models", "sync", "--storage", here.where.root])
    assert answer.exit_code == 2
    assert "could not be written" in answer.output
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_the_end_of_a_run_tells_how_to_look_or_what_went_wrong(
    tmp_path: Path, pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
    (step,) = [step for step in opened.steps if step.kind == "track"]

    def told(state: State) -> str:
        states = dict.fromkeys((one.name for one in opened.steps), state)
        return str(opened.summary(RunResult(states))["mlflow"])

    database = opened.paths.storage.path("mlflow.db")
    assert told(State.BLOCKED) == f"mlflow ui --backend-store-uri sqlite:///{database}"
    facts = {"uri": "http://127.0.0.1:5000", "error": "it was down"}
    committed(opened.paths.storage, step, FIRST, facts, {})
    assert told(State.DONE) == "it was down"
    assert told(State.REUSED) == "http://127.0.0.1:5000"  # which may have been written since


def test_the_command_writes_what_is_lacking_and_says_how_much(
    here: World, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here.promote(here.add("a"))
    _database(here.where.path("mlflow.db"), empty_database)
    for expected in ("runs 4, versions 1", "runs 0, versions 0"):
        answer = CliRunner().invoke(app, ["models", "sync", "--storage", here.where.root])
        assert answer.exit_code == 0, answer.output
        assert answer.output.splitlines()[-1].endswith(expected)
    assert picture(tracking_uri(here.where))["models"].keys() == {NAME}


def test_a_storage_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["models", "sync", "--storage", str(tmp_path / "typo")])
    assert answer.exit_code == 2
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://ann:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://u:se/cr:et@host/db", "postgresql://host/db"),
        ("https://token@host", "https://host"),
        ("postgresql://host/db?user=u&password=secret", "postgresql://host/db"),
        ("no answer of http://a:secret@host/x?y=z, again", "no answer of http://host/x again"),
        ("sqlite:////home/me@work/a.db", "sqlite:////home/me@work/a.db"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_what_is_shown_of_a_uri_has_no_secret(uri: str, told: str) -> None:
    assert without_secrets(uri) == told
