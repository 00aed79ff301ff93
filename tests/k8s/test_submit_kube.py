"""`pretune submit --kube` and its companions: the real kubectl, a server in memory."""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_objects import RESOURCES, resource_of
from api_server import ApiServer, serving
from api_store import Key, Wanted
from rendering import crd_kinds
from schemas import Document
from test_rayjobs import template
from typer.testing import CliRunner, Result

from workflows import cli, following, storage
from workflows.config import ConfigError

TEAM = "pretune"
RAYJOB = next(one for one in RESOURCES if one.kind == "RayJob")
WORKLOAD = next(one for one in RESOURCES if one.kind == "Workload")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(following, "_POLL_S", 0.0)
    monkeypatch.setattr(following, "_LOG_EVERY_S", -1.0)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving({}, tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        put(server, cron(labels={"kueue.x-k8s.io/queue-name": "gpu"}))
        yield server
    # Clients of object stores are kept: those made here know neither the server of other tests nor
    # its keys.
    storage._filesystem.cache_clear()


def cron(**metadata: Any) -> Document:
    return {"apiVersion": "ray.io/v1", **template(**metadata)}


def put(api: ApiServer, document: Document) -> None:
    """Create an object, with its status, as an operator writes it."""
    api.store.create(document, TEAM)
    if "status" in document:
        key = Key(resource_of(document), TEAM, document["metadata"]["name"])
        api.store.set_status(key, document["status"])


def rayjobs(api: ApiServer) -> list[Document]:
    return api.store.list(Wanted(RAYJOB))[1]


def names(api: ApiServer) -> list[str]:
    return [job["metadata"]["name"] for job in rayjobs(api)]


def submit(*arguments: object) -> Result:
    command = ["submit", "--kube", "--from", "raycronjob/nightly", *map(str, arguments)]
    return CliRunner().invoke(cli.app, command)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def runs_through(api: ApiServer, *statuses: str, ends: str = "SUCCEEDED") -> Callable[[], None]:
    """An operator that moves every RayJob on, one status a question."""
    left: dict[str, list[str]] = {}

    def act() -> None:
        for name in names(api):
            now = left.setdefault(name, list(statuses))
            if now:
                status = now.pop(0)
                final = ends if status in ("Complete", "Failed") else "RUNNING"
                told = {
                    "jobDeploymentStatus": status,
                    "jobStatus": final,
                    "rayClusterName": f"{name}-ray",
                }
                api.store.set_status(Key(RAYJOB, TEAM, name), told)

    return act


def head_pod(api: ApiServer, run: str, log: str) -> None:
    labels = {"ray.io/cluster": f"{run}-ray", "ray.io/node-type": "head"}
    containers = [{"name": "ray-head"}, {"name": "ray-job-submitter"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{run}-head", "labels": labels},
        "spec": {"containers": containers},
    }
    put(api, pod)
    api.store.print(TEAM, f"{run}-head", log, is_last=True)


def test_a_run_succeeds_and_its_driver_is_heard(api: ApiServer) -> None:
    api.meanwhile = runs_through(api, "Initializing", "Initializing", *["Running"] * 12, "Complete")
    head_pod(api, "a", "line one\nline two\n")
    answer = submit("--run-id", "a", "--storage", "s3://b/x")
    assert answer.exit_code == 0, answer.output
    assert "the storage is not seen from here" in answer.output
    assert answer.output.count("line one") == 1
    (job,) = rayjobs(api)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["PRETUNE_RUN_ID"] == "a"
    assert any("fieldValidation=Strict" in access.query for access in api.log)


def test_a_log_that_breaks_off_is_read_on_without_gaps_or_doubles(api: ApiServer) -> None:
    head_pod(api, "a", "")
    runs, asked = runs_through(api, *["Running"] * 24, "Complete"), count()

    def act() -> None:
        runs()
        if names(api):
            number = next(asked)
            api.store.print(TEAM, "a-head", f"line {number};\n")
            if number and number % 5 == 0:
                api.failures.append(503 * (number % 2))

    api.meanwhile = act
    answer = submit("--run-id", "a", "--storage", "s3://b/x")
    assert answer.exit_code == 0, answer.output
    assert "as the test wants it" in answer.output
    lines = [line for line in answer.output.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number};" for number in range(len(lines))]
    assert len(lines) > 20


@pytest.mark.parametrize(
    ("status", "ends", "code"), [("Failed", "FAILED", 1), ("Complete", "STOPPED", 4)]
)
def test_exit_codes(api: ApiServer, status: str, ends: str, code: int) -> None:
    api.meanwhile = runs_through(api, "Running", status, ends=ends)
    assert submit().exit_code == code


def test_the_same_tick_is_attached_to_and_never_run_twice(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_SCHEDULED_JOB", "pretune-29000000")
    api.meanwhile = runs_through(api, "Running", "Complete")
    first, second = submit(), submit()
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "submitted" in first.output
    assert "was there: attached" in second.output
    (job,) = rayjobs(api)
    assert job["metadata"]["name"].endswith("-cron")
    other = submit("--run-id", job["metadata"]["name"], "--set", "pretrain.seed=1")
    assert other.exit_code == 2
    assert "made of something else" in other.output
    put(api, cron() | {"metadata": {"name": "weekly"}})
    command = (
        "submit",
        "--kube",
        "--from",
        "raycronjob/weekly",
        "--run-id",
        job["metadata"]["name"],
    )
    assert "made of something else" in call(*command).output


def test_overlap(api: ApiServer) -> None:
    assert submit("--run-id", "a", "--detach").exit_code == 0
    forbidden = submit("--run-id", "b", "--detach", "--concurrency", "forbid")
    assert forbidden.exit_code == 0
    assert "a of nightly goes on; this run is skipped" in forbidden.output
    assert names(api) == ["a"]
    again = submit("--run-id", "a", "--detach", "--concurrency", "forbid")
    assert "was there: attached" in again.output
    assert submit("--run-id", "c", "--detach", "--concurrency", "replace").exit_code == 0
    assert names(api) == ["c"]
    assert submit("--run-id", "d", "--detach").exit_code == 0
    assert len(rayjobs(api)) == 2


def test_what_is_not_admitted_in_time_is_withdrawn_with_kueues_words(api: ApiServer) -> None:
    def never() -> None:
        if not rayjobs(api) or api.store.list(Wanted(WORKLOAD))[1]:
            return
        labels = {"kueue.x-k8s.io/job-uid": rayjobs(api)[0]["metadata"]["uid"]}
        message = "needs 8 GPUs, 2 left"
        waits = {"type": "QuotaReserved", "status": "False", "message": message}
        document = {
            "apiVersion": WORKLOAD.api_version,
            "kind": "Workload",
            "metadata": {"name": "w", "labels": labels},
            "status": {"conditions": [waits]},
        }
        put(api, document)

    api.meanwhile = never
    answer = submit("--pending-timeout", 0)
    assert answer.exit_code == 3
    assert "waiting: Kueue: needs 8 GPUs, 2 left" in answer.output
    assert rayjobs(api) == []


def test_old_ones_are_pruned(api: ApiServer) -> None:
    api.meanwhile = runs_through(api, "Complete")
    for run in "abcd":
        assert submit("--run-id", run, "--keep", 2).exit_code == 0
    assert names(api) == ["b", "c", "d"]


def test_found_listed_and_ended_by_name(api: ApiServer, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    head_pod(api, "a", "the driver says\n")
    api.meanwhile = runs_through(api, "Running")
    where = ("--storage", storage)
    assert submit("--run-id", "a", "--detach", *where).exit_code == 0
    listed = call("list", *where, "--address", "kube://pretune", "--json")
    assert [(row["run"], row["cluster"]) for row in json.loads(listed.output)] == [("a", "running")]
    assert json.loads(call("status", "a", *where, "--json").output)["cluster"]["state"] == "running"
    assert call("logs", "a", *where).output == "the driver says\n"
    assert call("stop", "a", *where).exit_code == 0
    assert rayjobs(api) == []
    assert json.loads(call("status", "a", *where, "--json").output)["cluster"] is None


def test_what_would_be_sent_is_shown_without_secrets(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "canary")
    answer = submit("--dry-run", "--env", "PASSWORD", "--env", "A=open", "--image", "pretune:3")
    assert answer.exit_code == 0
    assert "canary" not in answer.output
    shown = json.loads(answer.output)
    assert "A: open" in shown["spec"]["runtimeEnvYAML"]
    assert rayjobs(api) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("pipeline.yaml",), "PIPELINE.yaml does not go with --kube"),
        (("--address", "http://head:8265"), "--address does not go with --kube"),
        (("--file", "x.yaml"), "give --from raycronjob/NAME or --file FILE"),
        (("--run-id", "UPPER"), "--run-id UPPER"),
        (("--env", "NO_SUCH_VARIABLE"), "no such variable here"),
        (("--metadata", "x"), "expected KEY=VALUE"),
        (("--context", "nowhere"), "nowhere"),
    ],
)
def test_wrong_usage(api: ApiServer, arguments: tuple[str, ...], told: str) -> None:
    answer = submit(*arguments)
    assert answer.exit_code == 2 or isinstance(answer.exception, ConfigError), answer.output
    assert told in answer.output + str(answer.exception)
    assert rayjobs(api) == []


def test_templates_that_are_none(api: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("kind: RayJob\n---\nkind: RayJob\n")
    for option, told in (
        (("--from", "raycronjob/missing"), "missing"),
        (("--from", "pod/x"), "expected raycronjob/NAME"),
        (("--file", file), "expected one RayJob or RayCronJob (got 2)"),
    ):
        answer = call("submit", "--kube", *option)
        assert answer.exit_code == 2
        assert told in answer.output


def test_servers_that_refuse_or_are_away(api: ApiServer) -> None:
    api.failures.extend([503] * 20)
    answer = submit()
    assert answer.exit_code == 5, answer.output
    assert "as the test wants it" in answer.output
    api.failures.clear()
    api.rules = []
    answer = submit()
    assert answer.exit_code == 2, answer.output
    assert "is forbidden: cannot get raycronjobs" in answer.output
    api.token = "another"
    answer = submit()
    assert answer.exit_code == 2, answer.output
    assert "logged in" in answer.output


def test_fields_that_the_schema_does_not_know_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bad.yaml"
    bad = cron()
    bad["spec"]["jobTemplate"]["bogus"] = 1
    file.write_text(yaml.safe_dump(bad))
    with serving(crd_kinds(), tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        answer = call("submit", "--kube", "--file", file)
    assert answer.exit_code == 2
    assert "bogus" in answer.output


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}, tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    answer = submit()
    assert answer.exit_code == 5, answer.output
    assert "was refused" in answer.output


def test_the_own_run_is_not_pruned_when_it_is_attached_to(api: ApiServer) -> None:
    api.meanwhile = runs_through(api, "Complete")
    for _ in range(2):
        assert submit("--run-id", "a", "--keep", 0).exit_code == 0
    assert len(rayjobs(api)) == 1


def test_a_run_that_is_deleted_while_it_is_followed_was_stopped(api: ApiServer) -> None:
    runs, asked = runs_through(api, "Running"), count()

    def deletes() -> None:
        runs()
        if names(api) and next(asked) > 3:
            api.store.delete(Key(RAYJOB, TEAM, names(api)[0]))

    api.meanwhile = deletes
    answer = submit("--run-id", "a")
    assert answer.exit_code == 4, answer.output
    assert "its RayJob was deleted" in answer.output


def test_reasons_that_may_not_be_asked_for_are_no_end(api: ApiServer) -> None:
    api.meanwhile = runs_through(api, *["Initializing"] * 5, "Complete")
    verbs = ["get", "list", "create"]
    resources = ["rayjobs", "raycronjobs"]
    api.rules = [{"verbs": verbs, "apiGroups": ["ray.io"], "resources": resources}]
    answer = submit("--run-id", "a")
    assert answer.exit_code == 0, answer.output
    assert {access.resource for access in api.log} >= {"pods", "workloads"}


def test_stopping_what_is_not_there_is_told(api: ApiServer, tmp_path: Path) -> None:
    answer = call("stop", "nosuch", "--storage", tmp_path, "--address", "kube://pretune")
    assert answer.exit_code == 2
    assert "there is no RayJob nosuch" in answer.output
    answer = call("status", "nosuch", "--storage", tmp_path, "--address", "kube://pretune")
    assert answer.exit_code == 2
    assert "nothing is known of a run nosuch" in answer.output
