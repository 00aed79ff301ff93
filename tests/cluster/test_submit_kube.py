"""`pretune submit --kube` and its companions: the real kubectl, a server in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_server import KubeServer, failure, served
from test_rayjobs import template
from typer.testing import CliRunner, Result

from workflows import cli, following
from workflows.config import ConfigError

RAY = "apis/ray.io/v1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(following, "_POLL_S", 0.0)
    monkeypatch.setattr(following, "_LOG_EVERY_S", -1.0)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with served(KubeServer(), tmp_path / "kubeconfig") as one:
        one.put("raycronjobs", template(labels={"kueue.x-k8s.io/queue-name": "gpu"}), RAY)
        yield one


def submit(*arguments: object) -> Result:
    command = ["submit", "--kube", "--from", "raycronjob/nightly", *map(str, arguments)]
    return CliRunner().invoke(cli.app, command)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def runs_through(*statuses: str, ends: str = "SUCCEEDED") -> Any:
    """An operator that moves every RayJob on, one status a question."""
    left: dict[str, list[str]] = {}

    def act(server: KubeServer) -> None:
        for job in server.rayjobs():
            name = job["metadata"]["name"]
            now = left.setdefault(name, list(statuses))
            if now:
                status = now.pop(0)
                final = ends if status in ("Complete", "Failed") else "RUNNING"
                job["status"] = {
                    "jobDeploymentStatus": status,
                    "jobStatus": final,
                    "rayClusterName": f"{name}-ray",
                }

    return act


def head_pod(server: KubeServer, run: str, log: str) -> None:
    labels = {"ray.io/cluster": f"{run}-ray", "ray.io/node-type": "head"}
    containers = [{"name": "ray-head"}, {"name": "ray-job-submitter"}]
    pod = {
        "metadata": {"name": f"{run}-head", "labels": labels},
        "spec": {"containers": containers},
    }
    server.put("pods", pod)
    server.logs[f"{run}-head"] = log


def test_a_run_succeeds_and_its_driver_is_heard(server: KubeServer) -> None:
    server.operator = runs_through("Initializing", "Initializing", *["Running"] * 12, "Complete")
    head_pod(server, "a", "line one\nline two\n")
    answer = submit("--run-id", "a", "--storage", "s3://b/x")
    assert answer.exit_code == 0, answer.output
    assert "the storage is not seen from here" in answer.output
    assert answer.output.count("line one") == 1
    (job,) = server.rayjobs()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["PRETUNE_RUN_ID"] == "a"
    assert any("fieldValidation=Strict" in request for request in server.requests)


@pytest.mark.parametrize(
    ("status", "ends", "code"), [("Failed", "FAILED", 1), ("Complete", "STOPPED", 4)]
)
def test_exit_codes(server: KubeServer, status: str, ends: str, code: int) -> None:
    server.operator = runs_through("Running", status, ends=ends)
    assert submit().exit_code == code


def test_the_same_tick_is_attached_to_and_never_run_twice(
    server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_SCHEDULED_JOB", "pretune-29000000")
    server.operator = runs_through("Running", "Complete")
    first, second = submit(), submit()
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "submitted" in first.output
    assert "was there: attached" in second.output
    (job,) = server.rayjobs()
    assert job["metadata"]["name"].endswith("-cron")
    other = submit("--run-id", job["metadata"]["name"], "--set", "pretrain.seed=1")
    assert other.exit_code == 2
    assert "made of something else" in other.output
    server.put("raycronjobs", template() | {"metadata": {"name": "weekly"}}, RAY)
    command = (
        "submit",
        "--kube",
        "--from",
        "raycronjob/weekly",
        "--run-id",
        job["metadata"]["name"],
    )
    assert "made of something else" in call(*command).output


def test_overlap(server: KubeServer) -> None:
    assert submit("--run-id", "a", "--detach").exit_code == 0
    forbidden = submit("--run-id", "b", "--detach", "--concurrency", "forbid")
    assert forbidden.exit_code == 0
    assert "a of nightly goes on; this run is skipped" in forbidden.output
    assert [job["metadata"]["name"] for job in server.rayjobs()] == ["a"]
    again = submit("--run-id", "a", "--detach", "--concurrency", "forbid")
    assert "was there: attached" in again.output
    assert submit("--run-id", "c", "--detach", "--concurrency", "replace").exit_code == 0
    assert [job["metadata"]["name"] for job in server.rayjobs()] == ["c"]
    assert submit("--run-id", "d", "--detach").exit_code == 0
    assert len(server.rayjobs()) == 2


def test_what_is_not_admitted_in_time_is_withdrawn_with_kueues_words(server: KubeServer) -> None:
    def never(server: KubeServer) -> None:
        for job in server.rayjobs():
            labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
            message = {
                "type": "QuotaReserved",
                "status": "False",
                "message": "needs 8 GPUs, 2 left",
            }
            server.put(
                "workloads",
                {"metadata": {"name": "w", "labels": labels}, "status": {"conditions": [message]}},
                "apis/kueue.x-k8s.io/v1beta2",
            )

    server.operator = never
    answer = submit("--pending-timeout", 0)
    assert answer.exit_code == 3
    assert "waiting: Kueue: needs 8 GPUs, 2 left" in answer.output
    assert server.rayjobs() == []


def test_old_ones_are_pruned(server: KubeServer) -> None:
    server.operator = runs_through("Complete")
    for run in "abcd":
        assert submit("--run-id", run, "--keep", 2).exit_code == 0
    assert [job["metadata"]["name"] for job in server.rayjobs()] == ["b", "c", "d"]


def test_found_listed_and_ended_by_name(server: KubeServer, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    head_pod(server, "a", "the driver says\n")
    server.operator = runs_through("Running")
    where = ("--storage", storage)
    assert submit("--run-id", "a", "--detach", *where).exit_code == 0
    listed = call("list", *where, "--address", "kube://team", "--json")
    assert [(row["run"], row["cluster"]) for row in json.loads(listed.output)] == [("a", "running")]
    assert json.loads(call("status", "a", *where, "--json").output)["cluster"]["state"] == "running"
    assert call("logs", "a", *where).output == "the driver says\n"
    assert call("stop", "a", *where).exit_code == 0
    assert server.rayjobs() == []
    assert json.loads(call("status", "a", *where, "--json").output)["cluster"] is None


def test_what_would_be_sent_is_shown_without_secrets(
    server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "canary")
    answer = submit("--dry-run", "--env", "PASSWORD", "--env", "A=open", "--image", "pretune:3")
    assert answer.exit_code == 0
    assert "canary" not in answer.output
    shown = json.loads(answer.output)
    assert "A: open" in shown["spec"]["runtimeEnvYAML"]
    assert server.rayjobs() == []


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
def test_wrong_usage(server: KubeServer, arguments: tuple[str, ...], told: str) -> None:
    answer = submit(*arguments)
    assert answer.exit_code == 2 or isinstance(answer.exception, ConfigError), answer.output
    assert told in answer.output + str(answer.exception)
    assert server.rayjobs() == []


def test_templates_that_are_none(server: KubeServer, tmp_path: Path) -> None:
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


def test_servers_that_refuse_or_are_away(server: KubeServer, tmp_path: Path) -> None:
    bad = template()
    bad["spec"]["jobTemplate"]["bogus"] = 1
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(bad))
    answer = call("submit", "--kube", "--file", file)
    assert answer.exit_code == 2
    assert 'unknown field "spec.bogus"' in answer.output
    for mishap, code, told in (
        (failure(503, "ServiceUnavailable", "not now"), 5, "not now"),
        (failure(401, "Unauthorized", "Unauthorized"), 2, "logged in"),
        (failure(403, "Forbidden", "may not create rayjobs"), 2, "may not create rayjobs"),
    ):
        server.mishap = mishap
        answer = submit()
        assert answer.exit_code == code, answer.output
        assert told in answer.output


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with served(KubeServer(), tmp_path / "kubeconfig"):
        pass
    answer = submit()
    assert answer.exit_code == 5, answer.output
    assert "was refused" in answer.output


def test_the_own_run_is_not_pruned_when_it_is_attached_to(server: KubeServer) -> None:
    server.operator = runs_through("Complete")
    for _ in range(2):
        assert submit("--run-id", "a", "--keep", 0).exit_code == 0
    assert len(server.rayjobs()) == 1


def test_a_run_that_is_deleted_while_it_is_followed_was_stopped(server: KubeServer) -> None:
    seen = iter(range(100))

    def deletes(server: KubeServer) -> None:
        runs_through("Running")(server)
        if server.rayjobs() and next(seen) > 3:
            server.objects = {
                path: one for path, one in server.objects.items() if "/rayjobs/" not in path
            }

    server.operator = deletes
    answer = submit("--run-id", "a")
    assert answer.exit_code == 4, answer.output
    assert "its RayJob was deleted" in answer.output


def test_reasons_that_may_not_be_asked_for_are_no_end(server: KubeServer) -> None:
    operator = runs_through(*["Initializing"] * 5, "Complete")

    def act(server: KubeServer) -> None:
        refuse_only(server)
        operator(server)

    def refuse_only(server: KubeServer) -> None:
        is_question = "/workloads" in server.requests[-1] or "/pods" in server.requests[-1]
        server.mishap = failure(403, "Forbidden", "you may not") if is_question else None

    server.operator = act
    answer = submit("--run-id", "a")
    assert answer.exit_code == 0, answer.output


def test_stopping_what_is_not_there_is_told(server: KubeServer, tmp_path: Path) -> None:
    answer = call("stop", "nosuch", "--storage", tmp_path, "--address", "kube://team")
    assert answer.exit_code == 2
    assert "there is no RayJob nosuch" in answer.output
    answer = call("status", "nosuch", "--storage", tmp_path, "--address", "kube://team")
    assert answer.exit_code == 2
    assert "nothing is known of a run nosuch" in answer.output
