"""The API server of the tests answers as a real one, to kubectl and to plain requests."""

import copy
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_operator
import requests
import yaml
from api_objects import RESOURCES, has_fields, selects
from api_server import Access, ApiServer, is_allowed, serving
from api_store import Key
from ray_operator import RayOperator
from rendering import (
    K8S,
    crd_kinds,
    executable,
    known_kinds,
    of_kind,
    render,
    title,
    with_components,
)
from schemas import Document

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]
RAYJOBS = "/apis/ray.io/v1/namespaces/pretune/rayjobs"
MERGE = {"Content-Type": "application/merge-patch+json"}
RAYJOB = next(one for one in RESOURCES if one.kind == "RayJob")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """With nothing in it; it checks custom resources where their schemas are at hand."""
    with serving(known_kinds(), tmp_path) as server:
        yield server


@pytest.fixture
def kubectl(api: ApiServer, tmp_path: Path) -> Kubectl:
    """The real one, on the namespace of the overlays."""

    def run(*arguments: str, given: object = None) -> "subprocess.CompletedProcess[str]":
        config = api.kubeconfig(tmp_path)
        return subprocess.run(
            [executable("kubectl"), "--kubeconfig", str(config), "-n", "pretune", *arguments],
            input=yaml.safe_dump(given) if given else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"HOME": str(tmp_path)},
        )

    return run


def rayjob(name: str = "run-1") -> Document:
    """A run as `submit` would make it of the dev overlay's template."""
    (template,) = of_kind(render(K8S / "overlays/dev"), "RayCronJob")
    metadata = {"name": name, "labels": {"app": "pretune"}}
    spec = copy.deepcopy(template["spec"]["jobTemplate"])
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


class Client(requests.Session):  # type: ignore[misc]
    """Who has the token; paths are those of RayJobs, or begin with a slash."""

    def __init__(self, api: ApiServer) -> None:
        super().__init__()
        self._url = api.url
        self.verify = str(api.authority)
        self.trust_env = False
        self.headers["Authorization"] = f"Bearer {api.token}"

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        """As the session's, within ten seconds."""
        where = url if url.startswith("/") else f"{RAYJOBS}{url}"
        return super().request(method, self._url + where, timeout=10, **options)


@pytest.fixture
def client(api: ApiServer) -> Iterator[Client]:
    """A session with the server."""
    with Client(api) as session:
        yield session


def test_kubectl_creates_gets_waits_and_deletes(api: ApiServer, kubectl: Kubectl) -> None:
    job = rayjob()
    job["metadata"] = {"generateName": "run-"}
    with RayOperator(api.store):
        made = kubectl("create", "--validate=false", "-f", "-", "-o", "name", given=job)
        assert made.returncode == 0, made.stderr
        name = made.stdout.strip()
        assert name.startswith("rayjob.ray.io/run-")
        complete = "--for=jsonpath={.status.jobDeploymentStatus}=Complete"
        waited = kubectl("wait", name, complete, "--timeout=20s")
        assert waited.returncode == 0, waited.stderr
    read = json.loads(kubectl("get", name, "-o", "json").stdout)
    assert read["status"]["jobStatus"] == "SUCCEEDED"
    pod = name.rpartition("/")[2] + "-head"
    assert kubectl("logs", pod).stdout == "step 1\ndone\n"
    assert kubectl("delete", name).returncode == 0
    assert "NotFound" in kubectl("get", name).stderr
    assert "not found" in kubectl("get", f"pod/{pod}").stderr


def test_kubectl_applies_a_whole_overlay_twice(api: ApiServer, kubectl: Kubectl) -> None:
    for folder in (K8S / "kueue", K8S / "overlays/gpu"):
        first = kubectl("apply", "--validate=false", "-k", str(folder))
        assert first.returncode == 0, first.stderr
        assert {line.rpartition(" ")[2] for line in first.stdout.splitlines()} == {"created"}
        last = api.store.last
        second = kubectl("apply", "--validate=false", "-k", str(folder))
        assert second.returncode == 0, second.stderr
        # Lists of custom resources whose items got defaults are sent again, to the same effect.
        assert api.store.last == last


def test_what_the_schema_refuses_is_told_by_its_path(kubectl: Kubectl) -> None:
    crd_kinds()
    job = rayjob()
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    refused = kubectl("create", "--validate=false", "-f", "-", given=job)
    assert refused.returncode == 1
    assert "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus" in refused.stderr
    assert "is not of type 'string'" in refused.stderr


def test_defaults_are_stored(api: ApiServer, client: Client) -> None:
    crd_kinds()
    job = rayjob()
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    made = client.post("", json=job).json()
    assert made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == 2**31 - 1
    assert made["metadata"]["generation"] == 1


def test_a_name_is_given_once(api: ApiServer, client: Client) -> None:
    assert client.post("", json=rayjob()).status_code == 201
    again = client.post("", json=rayjob())
    assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")


def test_a_dry_run_checks_and_keeps_nothing(api: ApiServer, client: Client) -> None:
    made = client.post("?dryRun=All", json=rayjob())
    assert made.status_code == 201
    assert client.get(f"{RAYJOBS}/run-1").status_code == 404


def test_an_older_copy_overwrites_nothing(api: ApiServer, client: Client) -> None:
    old = client.post("", json=rayjob()).json()
    patch = {"metadata": {"labels": {"a": "b"}}}
    assert client.patch(f"{RAYJOBS}/run-1", json=patch, headers=MERGE).ok
    lost = client.put(f"{RAYJOBS}/run-1", json=old)
    assert (lost.status_code, lost.json()["reason"]) == (409, "Conflict")


def test_status_has_a_path_of_its_own(api: ApiServer, client: Client) -> None:
    patch = {"status": {"jobStatus": "RUNNING"}, "metadata": {"labels": {"a": "b"}}}
    client.post("", json=rayjob())
    made = client.patch(f"{RAYJOBS}/run-1", json=patch, headers=MERGE).json()
    assert "jobStatus" not in made.get("status", {})
    made = client.patch(f"{RAYJOBS}/run-1/status", json={**patch, "spec": {}}, headers=MERGE).json()
    assert made["status"]["jobStatus"] == "RUNNING"
    assert made["metadata"]["generation"] == 1


def test_without_the_token_nothing_is_told(
    api: ApiServer, kubectl: Kubectl, client: Client
) -> None:
    assert kubectl("get", "rayjobs").returncode == 0
    api.token = "changed"
    refused = client.get("")
    assert (refused.status_code, refused.json()["reason"]) == (401, "Unauthorized")
    # A kubeconfig with the token is written anew for each call.
    assert kubectl("get", "rayjobs").returncode == 0


def test_a_pod_finds_the_server(api: ApiServer, tmp_path: Path) -> None:
    there = api.service_account(tmp_path)
    url = f"https://{there['KUBERNETES_SERVICE_HOST']}:{there['KUBERNETES_SERVICE_PORT']}"
    token = (tmp_path / "token").read_text(encoding="utf-8")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(
            url + RAYJOBS,
            headers={"Authorization": f"Bearer {token}"},
            verify=str(tmp_path / "ca.crt"),
            timeout=10,
        )
    assert answer.json()["items"] == []


def test_a_watch_tells_what_comes_after_a_list(api: ApiServer, client: Client) -> None:
    client.post("", json=rayjob("before"))
    number = client.get("").json()["metadata"]["resourceVersion"]
    url = f"?watch=1&timeoutSeconds=5&resourceVersion={number}&labelSelector=app"
    told = client.get(url, stream=True)
    client.post("", json=rayjob("after"))
    client.delete(f"{RAYJOBS}/before")
    lines = told.iter_lines()
    events = [json.loads(next(lines)) for _ in range(2)]
    told.close()
    assert [(one["type"], one["object"]["metadata"]["name"]) for one in events] == [
        ("ADDED", "after"),
        ("DELETED", "before"),
    ]


def test_a_watch_of_a_forgotten_past_is_refused(api: ApiServer, client: Client) -> None:
    number = client.post("", json=rayjob()).json()["metadata"]["resourceVersion"]
    api.store.forget()
    url = f"?watch=1&resourceVersion={number}&timeoutSeconds=2"
    event = json.loads(client.get(url).text)
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    listed = client.get("").json()["metadata"]["resourceVersion"]
    url = f"?watch=1&resourceVersion={listed}&timeoutSeconds=1"
    assert client.get(url).text == ""


def test_a_log_is_followed_to_its_end(api: ApiServer, client: Client) -> None:
    api.store.print("pretune", "head", "one\n")
    threading.Timer(0.2, api.store.print, ["pretune", "head", "two\n"], {"is_last": True}).start()
    url = "/api/v1/namespaces/pretune/pods/head/log"
    assert client.get(url).text == "one\n"
    assert client.get(url + "?follow=true").text == "one\ntwo\n"


def test_failures_are_those_the_test_wants(api: ApiServer, client: Client) -> None:
    api.failures.extend([503, 0])
    assert client.get("").status_code == 503
    with pytest.raises(requests.ConnectionError):
        client.get("")
    assert client.get("").status_code == 200


@pytest.mark.parametrize(
    ("stages", "last", "job"),
    [
        (ray_operator.SUCCEEDS, "Complete", "SUCCEEDED"),
        (ray_operator.FAILS, "Failed", "FAILED"),
        (ray_operator.IS_STOPPED, "Complete", "STOPPED"),
        (ray_operator.IS_RETRIED, "Complete", "SUCCEEDED"),
        (ray_operator.IS_REFUSED, "ValidationFailed", None),
    ],
)
def test_operator_takes_runs_to_their_end(
    api: ApiServer,
    stages: tuple[ray_operator.Stage, ...],
    last: str,
    job: str | None,
    client: Client,
) -> None:
    with RayOperator(api.store, lambda _: stages, pause_s=0.01):
        client.post("", json=rayjob())
        url = "?watch=1&timeoutSeconds=10"
        for line in client.get(url, stream=True).iter_lines():
            status: dict[str, Any] = json.loads(line)["object"].get("status", {})
            if status.get("jobDeploymentStatus") == last:
                break
    assert status.get("jobDeploymentStatus") == last
    assert status.get("jobStatus") == job


def test_the_server_lets_the_submitter_do_what_its_role_says_and_no_more(
    api: ApiServer, client: Client
) -> None:
    """That the role is what `submit` asks for is a test of `tests/cluster/test_submit_kube.py`."""
    documents = with_components("auth-token")
    (role,) = (one for one in of_kind(documents, "Role") if title(one) == "Role/submitter")
    assert is_allowed(Access("create", "ray.io", "rayjobs"), role["rules"])
    assert not is_allowed(Access("get", "", "secrets", "mlflow-db"), role["rules"])
    api.rules = role["rules"]
    assert client.post("", json=rayjob()).status_code == 201
    refused = client.get("/api/v1/namespaces/pretune/secrets/other")
    assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
    assert api.log == [
        Access("create", "ray.io", "rayjobs"), Access("get", "", "secrets", "other")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [
        ("", True), ("a=1", True), ("a==1", True), ("a=2", False), ("a!=2", True), ("b", True),
        ("!b", False), ("!c", True), ("c", False), ("a in (1, 2),b", True), ("a notin (1)", False),
        ("c notin (1)", True), ("a=1,b=x", False),
    ],
)  # fmt: skip
def test_selectors(selector: str, is_selected: bool) -> None:
    assert selects(selector, {"a": "1", "b": "2"}) == is_selected


def test_field_selectors() -> None:
    event = {"involvedObject": {"name": "run-1"}, "metadata": {"name": "e"}}
    assert has_fields("involvedObject.name=run-1,metadata.name=e", event)
    assert not has_fields("involvedObject.name=other", event)


def test_what_an_object_owns_goes_with_it(api: ApiServer, client: Client) -> None:
    with RayOperator(api.store, lambda _: ray_operator.HANGS, pause_s=0.01):
        client.post("", json=rayjob())
        url = "?watch=1&timeoutSeconds=10"
        for line in client.get(url, stream=True).iter_lines():
            if json.loads(line)["object"].get("status", {}).get("jobStatus") == "RUNNING":
                break
    pods = "/api/v1/namespaces/pretune/pods"
    assert len(client.get(pods).json()["items"]) == 1
    api.store.delete(Key(RAYJOB, "pretune", "run-1"))
    assert client.get(pods).json()["items"] == []
