"""`pretune k8s render`: what it makes is what the overlays by hand are held to."""

from pathlib import Path
from typing import Any

import policies
import pytest
import yaml
from rendering import K8S, at, of_kind, render
from schemas import Document
from test_k8s_manifests import faults
from test_k8s_policies import KUEUE
from typer.testing import CliRunner, Result
from world import World

from workflows import cli

GANG = {"workers": 16, "cpus": 7, "gpus": 1}
GIB = 1 << 30


def pipeline(folder: Path, cluster: dict[str, Any], **changes: Any) -> Path:
    data = yaml.safe_load((K8S / "overlays/gpu/pipeline.yaml").read_text(encoding="utf-8"))
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(data | {"cluster": cluster} | changes), encoding="utf-8")
    return file


def rendered(folder: Path, file: Path, *options: object) -> tuple[Document, ...]:
    answer = asked(folder, file, *options)
    assert answer.exit_code == 0, answer.output
    assert (folder / "mine" / "pipeline.yaml").read_text() == file.read_text()
    return render(folder / "mine")


def asked(folder: Path, file: Path, *options: object) -> Result:
    into = ("--into", folder / "mine", "--k8s", K8S)
    return CliRunner().invoke(cli.app, ["k8s", "render", *map(str, (file, *into, *options))])


def template_of(documents: tuple[Document, ...]) -> Document:
    (found,) = of_kind(documents, "RayCronJob")
    return found


def groups_of(documents: tuple[Document, ...]) -> dict[str, dict[str, Any]]:
    found = at(template_of(documents), "spec.jobTemplate.rayClusterSpec.workerGroupSpecs")
    return {group["groupName"]: group for group in found}


def limits(group: dict[str, Any]) -> dict[str, str]:
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    return dict(resources["limits"])


def assert_sound(documents: tuple[Document, ...]) -> None:
    assert policies.findings(World(documents, elsewhere=KUEUE)) == {}
    assert [wrong for one in documents if (wrong := faults(one))] == []


def test_groups_hold_what_the_pipeline_asks_for(tmp_path: Path) -> None:
    trial = {"cpus": 7, "gpus": 1}
    file = pipeline(tmp_path, {"pretrain": GANG, "trials": trial})
    options = (
        *("--component", "kueue", "--component", "monitoring", "--queue", "pretune"),
        *("--schedule", "30 1 * * *", "--timezone", "Europe/Berlin", "--trial-pods", 2),
        *("--image", "registry.example.org/ours:1.0-ray2.60.0-gpu", "--storage", "s3://mine/x"),
    )
    documents = rendered(tmp_path, file, *options)
    assert_sound(documents)
    groups = groups_of(documents)
    assert {name: group["replicas"] for name, group in groups.items()} == {
        "pretrain": 2,
        "trials": 2,
    }
    for group in groups.values():
        found = limits(group)
        assert (found["cpu"], found["nvidia.com/gpu"]) == ("56", "8")
        store = int(group["rayStartParams"]["object-store-memory"])
        assert int(found["memory"].removesuffix("Gi")) * GIB > store + 8 * 4 * GIB
    (cronjob,) = of_kind(documents, "CronJob")
    for place in (cronjob["spec"], template_of(documents)["spec"]):
        assert (place["schedule"], place["timeZone"]) == ("30 1 * * *", "Europe/Berlin")
    text = yaml.safe_dump_all(documents)
    assert text.count("registry.example.org/ours:1.0-ray2.60.0-gpu") == 4
    assert "PRETUNE_STORAGE: s3://mine/x" in text


def test_the_example_of_many_nodes_is_rendered_as_its_head_says(tmp_path: Path) -> None:
    file = K8S.parent / "examples" / "many-nodes.yaml"
    components = [("--component", name) for name in ("kueue", "spot", "auth-token")]
    options = [word for pair in components for word in pair]
    documents = rendered(tmp_path, file, *options, "--schedule", "0 1 * * *")
    assert_sound(documents)
    gang = groups_of(documents)["pretrain"]
    assert (gang["replicas"], limits(gang)["nvidia.com/gpu"]) == (8, "8")


def test_memory_follows_zeros_plan(tmp_path: Path) -> None:
    """What is offloaded from GPUs lies in the pod's memory."""
    found = {}
    for name, zero in (
        ("on the GPU", {"stage": 2}),
        ("offloaded", {"stage": 2, "offload_optimizer": "cpu"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        file = pipeline(folder, {"pretrain": GANG, "trials": {"cpus": 7, "gpus": 1}})
        data = yaml.safe_load(file.read_text())
        data["pretrain"]["zero"] = zero
        file.write_text(yaml.safe_dump(data))
        group = groups_of(rendered(folder, file))["pretrain"]
        found[name] = int(limits(group)["memory"].removesuffix("Gi"))
    parameters = 370e6  # about: 24 layers of 1024
    assert found["offloaded"] - found["on the GPU"] >= 8 * parameters * 12 / 16 / GIB


def test_without_gpus_each_worker_has_a_pod_of_its_own(tmp_path: Path) -> None:
    cluster = {"pretrain": {"workers": {"min": 1, "max": 2}, "cpus": 3}, "trials": {"cpus": 2}}
    documents = rendered(tmp_path, pipeline(tmp_path, cluster), "--trial-pods", 3)
    assert_sound(documents)
    gang, trials = groups_of(documents).values()
    assert (gang["minReplicas"], gang["replicas"], gang["maxReplicas"]) == (1, 2, 2)
    assert limits(gang)["cpu"] == "3"
    assert "nvidia.com/gpu" not in limits(gang)
    assert (trials["replicas"], limits(trials)["cpu"]) == (3, "2")


def test_steps_of_the_users_own_find_room(tmp_path: Path) -> None:
    own = {"clean": {"uses": "clean:run", "resources": {"cpus": 9, "gpus": 1}}}
    documents = rendered(tmp_path, pipeline(tmp_path, {"trials": {"cpus": 2}}, steps=own))
    assert_sound(documents)
    found = limits(groups_of(documents)["trials"])
    assert (found["cpu"], found["nvidia.com/gpu"]) == ("9", "1")


def test_searches_that_grow_begin_with_nothing(tmp_path: Path) -> None:
    file = pipeline(tmp_path, {"trials": {"cpus": 4, "gpus": 0.5}})
    options = ("--component", "autoscale-trials", "--trial-pods", 5, "--gpus-per-pod", 2)
    documents = rendered(tmp_path, file, *options)
    assert_sound(documents)
    trials = groups_of(documents)["trials"]
    assert (trials["minReplicas"], trials["replicas"], trials["maxReplicas"]) == (0, 0, 5)
    assert (limits(trials)["cpu"], limits(trials)["nvidia.com/gpu"]) == ("16", "2")


def test_a_base_that_is_there_needs_no_gang(tmp_path: Path) -> None:
    file = pipeline(tmp_path, {"trials": {"cpus": 2}})
    data = yaml.safe_load(file.read_text())
    for section in ("corpus", "tokenizer", "model", "pretrain"):
        del data[section]
    file.write_text(yaml.safe_dump(data | {"base": {"from": "/data/base"}}))
    documents = rendered(tmp_path, file)
    assert_sound(documents)
    assert set(groups_of(documents)) == {"trials"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--component", "kueu"), "--component kueu: there are auth-token, autoscale-trials"),
        (("--image", "registry.example.org:5000/ours"), "expected NAME:TAG"),
        (("--image", "ours"), "expected NAME:TAG"),
        (
            ("--gpus-per-pod", "1"),
            "cluster.pretrain.gpus: 2 for one worker, and --gpus-per-pod is 1",
        ),
        (("--k8s", "nowhere"), "nowhere: no base/kustomization.yaml there"),
    ],
)
def test_what_cannot_be_rendered_is_told_and_leaves_nothing(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    file = pipeline(tmp_path, {"pretrain": {"workers": 2, "gpus": 2}})
    answer = asked(tmp_path, file, *options)
    assert told in answer.output.replace("\n", " ") + str(answer.exception)
    assert answer.exit_code == 2 or "ConfigError" in repr(answer.exception)
    assert not (tmp_path / "mine").exists()


def test_files_beside_the_pipeline_would_not_be_there(tmp_path: Path) -> None:
    file = pipeline(tmp_path, {}, corpus={"sources": [{"path": "texts.jsonl"}]})
    answer = asked(tmp_path, file)
    assert "corpus.sources.0.path: texts.jsonl is relative to the pipeline" in str(answer.exception)
    (tmp_path / "mine").mkdir()
    assert "exists; remove it" in asked(tmp_path, file).output.replace("\n", " ")
