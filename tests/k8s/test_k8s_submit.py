"""The CronJob's own command against the API server, with no more rights than its Role gives."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_operator
from api_objects import RESOURCES, resource_of
from api_server import ApiServer, serving
from api_store import Wanted
from ray_operator import RayOperator, Stage
from rendering import ROOT, known_kinds, of_kind, with_components
from schemas import Document

pytestmark = pytest.mark.slow
RAYJOB = next(one for one in RESOURCES if one.kind == "RayJob")
DOCUMENTS = with_components("kueue", "auth-token")
(ROLE,) = (one for one in of_kind(DOCUMENTS, "Role"))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """With nothing in it; it checks custom resources where their schemas are at hand."""
    with serving(known_kinds(), tmp_path) as server:
        yield server


@pytest.fixture
def applied(api: ApiServer) -> ApiServer:
    """The namespace as the overlay has it; who asks has the submitter's rights."""
    for document in DOCUMENTS:
        is_namespaced = resource_of(document).is_namespaced
        api.store.create(document, "pretune" if is_namespaced else None)
    api.rules = ROLE["rules"]
    return api


def submit(
    api: ApiServer, folder: Path, *more: str, job: str = "pipeline-29736000"
) -> "subprocess.CompletedProcess[str]":
    """What the pod of a tick runs; options that are given again win."""
    (cronjob,) = of_kind(DOCUMENTS, "CronJob")
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["pretune"]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PRETUNE_CACHE") if name in os.environ},
        "HOME": str(folder),
        "KUBECONFIG": str(api.kubeconfig(folder)),
        "PRETUNE_SCHEDULED_JOB": job,
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", "from workflows.cli import main; main()", *container["args"], *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


def runs(api: ApiServer) -> list[Document]:
    """The RayJobs that are there."""
    return api.store.list(Wanted(RAYJOB))[1]


@pytest.mark.parametrize(
    ("stages", "code"),
    [
        (ray_operator.SUCCEEDS, 0),
        (ray_operator.FAILS, 1),
        (ray_operator.IS_STOPPED, 4),
        (ray_operator.IS_REFUSED, 1),
    ],
    ids=["succeeds", "fails", "is stopped", "is refused"],
)
def test_exit_code_tells_how_the_run_ended(
    applied: ApiServer, tmp_path: Path, stages: tuple[Stage, ...], code: int
) -> None:
    with RayOperator(applied.store, lambda _: stages):
        answer = submit(applied, tmp_path)
    assert answer.returncode == code, answer.stdout + answer.stderr
    (run,) = runs(applied)
    labels = run["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "pretune"
    assert "PRETUNE_RUN_ID" in run["spec"]["runtimeEnvYAML"]
    if stages in (ray_operator.SUCCEEDS, ray_operator.FAILS):
        assert "step 1" in answer.stdout


def test_a_tick_that_is_tried_again_is_the_same_run(applied: ApiServer, tmp_path: Path) -> None:
    with RayOperator(applied.store):
        codes = [submit(applied, tmp_path).returncode for _ in range(2)]
    assert codes == [0, 0]
    assert len(runs(applied)) == 1


def test_a_run_that_gets_no_quota_is_taken_back(applied: ApiServer, tmp_path: Path) -> None:
    with RayOperator(applied.store, lambda _: ray_operator.IS_PENDING):
        answer = submit(applied, tmp_path, "--pending-timeout", "3")
    assert answer.returncode == 3, answer.stdout + answer.stderr
    assert runs(applied) == []


def test_a_run_is_not_overtaken(applied: ApiServer, tmp_path: Path) -> None:
    with RayOperator(applied.store, lambda _: ray_operator.HANGS):
        first = submit(applied, tmp_path, "--detach")
        second = submit(applied, tmp_path, job="pipeline-29737440")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert len(runs(applied)) == 1


def test_the_role_gives_nothing_that_is_not_asked_for(applied: ApiServer, tmp_path: Path) -> None:
    with RayOperator(applied.store, lambda _: ray_operator.IS_PENDING):
        submit(applied, tmp_path, "--pending-timeout", "3")
    with RayOperator(applied.store):
        submit(applied, tmp_path, job="pipeline-29737440")
    given = {
        (verb, group, resource)
        for rule in ROLE["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert {access[:3] for access in applied.log} == given
