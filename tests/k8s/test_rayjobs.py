from dataclasses import replace
from typing import Any

import pytest
import yaml

from cluster.rayjobs import (
    Changes,
    digest_of,
    name_of,
    outdated,
    rayjob,
    reasons,
    scheduled,
    status_of,
)
from cluster.remote import RefusedError, RemoteState


def template(**metadata: Any) -> dict[str, Any]:
    pod = {"template": {"spec": {"containers": [{"name": "ray", "image": "pretune:1"}]}}}
    return {
        "kind": "RayCronJob",
        "metadata": {"name": "nightly", **metadata},
        "spec": {
            "suspend": True,
            "schedule": "0 2 * * *",
            "jobTemplate": {
                "entrypoint": "pretune run p.yaml",
                "runtimeEnvYAML": "env_vars: {A: '1'}\nworking_dir: s3://b/x.zip\n",
                "metadata": {"team": "nlp"},
                "rayClusterSpec": {
                    "headGroupSpec": pod,
                    "workerGroupSpecs": [{"groupName": "gpu", **pod}],
                },
            },
        },
    }


def test_a_rayjob_of_a_template() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "slow", "app.kubernetes.io/name": "p", "mine": "x"}
    source = template(labels=labels, annotations={"kueue.x-k8s.io/elastic-job": "true", "k": "v"})
    changes = Changes(
        "nightly_1",
        overrides=["pretrain.seed=1", "name=a b"],
        storage="s3://b/s",
        image="pretune:2",
        queue="fast",
        priority="high",
        environment={"A": "2"},
        metadata={"who": "me"},
    )
    made = rayjob(source, changes)
    name = made["metadata"]["name"]
    assert name.startswith("nightly-1-")
    assert made["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "fast",
        "kueue.x-k8s.io/priority-class": "high",
        "app.kubernetes.io/name": "p",
        "pretune.io/template": "nightly",
        "pretune.io/run": name,
    }
    annotations = made["metadata"]["annotations"]
    digest = annotations.pop("pretune.io/digest")
    assert annotations == {
        "kueue.x-k8s.io/elastic-job": "true",
        "pretune.io/run": "nightly_1",
    }
    assert digest == digest_of(rayjob(source, changes))
    for change in ({"storage": "s3://b/other"}, {"image": "pretune:3"}, {"queue": "slow"}):
        assert digest_of(rayjob(source, replace(changes, **change))) != digest
    spec = made["spec"]
    assert spec["entrypoint"] == "pretune run p.yaml --set=pretrain.seed=1 '--set=name=a b'"
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {
        "env_vars": {"A": "2", "PRETUNE_RUN_ID": "nightly_1", "PRETUNE_STORAGE": "s3://b/s"},
        "working_dir": "s3://b/x.zip",
    }
    assert spec["metadata"] == {"team": "nlp", "who": "me"}
    pods = spec["rayClusterSpec"]
    groups = [pods["headGroupSpec"], *pods["workerGroupSpecs"]]
    images = [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert images == ["pretune:2"] * 2
    assert "suspend" not in spec
    assert source == template(labels=labels, annotations=source["metadata"]["annotations"])


def test_a_rayjob_of_another_and_of_nothing() -> None:
    source = {
        "kind": "RayJob",
        "metadata": {"name": "once"},
        "spec": template()["spec"]["jobTemplate"],
    }
    assert rayjob(source, Changes("a"))["spec"]["entrypoint"] == "pretune run p.yaml"
    with pytest.raises(RefusedError, match=r"RayCronJob or a RayJob .*got CronJob"):
        rayjob({"kind": "CronJob"}, Changes("a"))
    source["spec"]["entrypoint"] = "sh -c 'pretune run p.yaml'"
    with pytest.raises(RefusedError, match=r"entrypoint begins with 'pretune run ' \(got"):
        rayjob(source, Changes("a", overrides=["pretrain.seed=1"]))
    source["spec"]["runtimeEnvYAML"] = "- a"
    with pytest.raises(RefusedError, match="runtimeEnvYAML is no mapping"):
        rayjob(source, Changes("a"))


@pytest.mark.parametrize("run_id", ["a", "tiny-20260101-000000-ab12", "a" * 47])
def test_names_that_kubernetes_takes_stay(run_id: str) -> None:
    assert name_of(run_id) == run_id


@pytest.mark.parametrize("run_id", ["a_b", "a.b", "1a", "a" * 63, f"{'a' * 37}-{'b' * 20}"])
def test_other_names_are_changed_and_stay_apart(run_id: str) -> None:
    name = name_of(run_id)
    assert len(name) <= 47
    assert name.replace("-", "a").isalnum()
    assert name[0].isalpha()
    assert "--" not in name
    assert name != name_of(f"{run_id}x"[-63:])


def test_a_tick_has_one_name_however_often_it_is_tried() -> None:
    assert scheduled("nightly", "pretune-29000000") == "nightly-20250219-212000-cron"
    for by_hand in ("now-1", "by-hand-x7", "again"):
        assert scheduled("nightly", by_hand) == by_hand


@pytest.mark.parametrize("value", ["$HOME", "a`b`", "a\\b"])
def test_values_that_a_shell_would_change_are_refused(value: str) -> None:
    for changes, option in (
        (Changes("a", environment={"A": value}), "--env A"),
        (Changes("a", metadata={"m": value}), "--metadata m"),
        (Changes("a", storage=value), "--storage"),
    ):
        with pytest.raises(RefusedError, match=f"{option}: a shell would expand"):
            rayjob(template(), changes)


@pytest.mark.parametrize(
    "value", ["a=$HOME", "a=b&c", "a=b;c", "a='b'", "a={b: 1}", "a=b|c", "a=(b)"]
)
def test_settings_that_two_shells_would_change_are_refused(value: str) -> None:
    with pytest.raises(RefusedError, match="put it into the pipeline file"):
        rayjob(template(), Changes("a", overrides=[value]))


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, RemoteState.PENDING),
        ({"jobDeploymentStatus": "Initializing"}, RemoteState.PENDING),
        ({"jobDeploymentStatus": "Suspended"}, RemoteState.PENDING),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, RemoteState.PENDING),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, RemoteState.RUNNING),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, RemoteState.SUCCEEDED),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, RemoteState.STOPPED),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, RemoteState.FAILED),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, RemoteState.FAILED),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "bad"}, RemoteState.FAILED),
    ],
)
def test_what_kuberay_says(status: dict[str, str], state: RemoteState) -> None:
    assert status_of({"status": status}).state is state


def test_what_ended_it_is_told() -> None:
    status = {
        "jobDeploymentStatus": "Failed",
        "reason": "AppFailed",
        "message": "Job entrypoint command failed with exit code 2, last available logs",
    }
    found = status_of({"status": status})
    assert found.exit_code == 2
    assert found.message.startswith("AppFailed: Job entrypoint command failed")


def test_why_it_waits() -> None:
    def condition(kind: str, status: str, message: str = "") -> dict[str, str]:
        return {"type": kind, "status": status, "message": message}

    workload = {"status": {"conditions": [condition("QuotaReserved", "False", "no GPUs left")]}}
    admitted = {"status": {"conditions": [condition("Admitted", "True")]}}
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    pods = [
        {
            "metadata": {"name": "head"},
            "status": {"conditions": [condition("PodScheduled", "False", "0/3 nodes fit")]},
        },
        {
            "metadata": {"name": "worker"},
            "status": {
                "containerStatuses": [
                    {"state": waiting},
                    {"state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"state": {"running": {}}},
                ]
            },
        },
    ]
    found = list(reasons([workload, admitted], pods))
    assert found == [
        "Kueue: no GPUs left",
        "pod head: 0/3 nodes fit",
        "pod worker: ImagePullBackOff: no such image",
    ]
    assert status_of({}, found).message == "; ".join(found)
    assert status_of({}).message == "not seen by KubeRay"


def test_only_finished_ones_beyond_the_newest_are_outdated() -> None:
    def one(name: str, minute: int, status: str, job: str = "SUCCEEDED") -> dict[str, Any]:
        return {
            "metadata": {"name": name, "creationTimestamp": f"2026-01-01T00:{minute:02}:00Z"},
            "status": {"jobDeploymentStatus": status, "jobStatus": job},
        }

    found = [
        one("c", 3, "Complete"),
        one("a", 1, "Failed"),
        one("b", 2, "Running"),
        one("d", 4, "Complete"),
    ]
    assert outdated(found, keep=1) == ["a", "c"]
    assert outdated(found, keep=3) == []
