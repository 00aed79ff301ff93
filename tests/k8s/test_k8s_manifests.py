"""Every overlay is what API servers take: built-in kinds by release, custom ones by their CRDs."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from rendering import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    at,
    crd_kinds,
    executable,
    of_kind,
    render,
    title,
    with_components,
)
from schemas import Document
from world import OUR_SECRETS

from cluster.rayjobs import Changes, rayjob
from workflows.config import load_config

RELEASES = ("1.30", "1.37")
RENDERED = [*OVERLAYS, K8S / "kueue"]
# No CRDs of the Prometheus operator are at hand: what we use of it, and nothing else.
_ENDPOINT = {"type": "object", "required": ["port"], "properties": {"port": {"type": "string"}}}
_ALERT = {
    "type": "object",
    "required": ["alert", "expr", "labels", "annotations"],
    "properties": {name: {} for name in ("alert", "expr", "for", "labels", "annotations")},
    "additionalProperties": False,
}
OTHERS: dict[str, dict[str, Any]] = {
    "PodMonitor": {
        "required": ["selector", "podMetricsEndpoints"],
        "properties": {
            "selector": {"required": ["matchLabels"]},
            "podTargetLabels": {"items": {"type": "string"}},
            "podMetricsEndpoints": {"items": _ENDPOINT, "minItems": 1},
        },
        "additionalProperties": False,
    },
    "PrometheusRule": {
        "required": ["groups"],
        "properties": {"groups": {"items": {"properties": {"rules": {"items": _ALERT}}}}},
        "additionalProperties": False,
    },
}


def faults(document: Document) -> list[str]:
    """What is wrong with a document of any kind."""
    custom = crd_kinds().get((document["apiVersion"], document["kind"]))
    if custom:
        return [str(fault) for fault in custom.faults(document)]
    if document["kind"] in OTHERS:
        validator = Draft202012Validator(OTHERS[document["kind"]])
        return [error.message for error in validator.iter_errors(document["spec"])]
    found = []
    for release in RELEASES:
        try:
            kubernetes_validate.validate(document, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{release}: {error.message}")
    return found


def gauges() -> set[str]:
    """What rank 0 and the driver report, as Ray exports it: the keys that their code has."""
    sources = ("pretrain.py", "history.py", "evaluation.py")
    text = "".join((ROOT / "trainers" / name).read_text(encoding="utf-8") for name in sources)
    text += (ROOT / "workflows" / "gauges.py").read_text(encoding="utf-8")
    return {f"ray_pretune_{name}" for name in re.findall(r'"([a-z_]+)"', text)}


@pytest.mark.parametrize("folder", RENDERED, ids=lambda path: path.name)
def test_overlay_is_what_an_api_server_takes(folder: Path) -> None:
    assert {title(one): wrong for one in render(folder) if (wrong := faults(one))} == {}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda path: path.name)
def test_component_goes_with_the_base_alone(component: Path) -> None:
    documents = with_components(component.name)
    assert {title(one): wrong for one in documents if (wrong := faults(one))} == {}


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_pipeline_of_an_overlay_can_be_read(folder: Path, tmp_path: Path) -> None:
    (data,) = [
        one["data"]
        for one in of_kind(render(folder), "ConfigMap")
        if one["metadata"]["name"].startswith("pipeline-")
    ]
    for name, text in data.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    load_config(tmp_path / "pipeline.yaml", ["cluster.address=auto"])


@pytest.mark.parametrize("folder", [K8S / "overlays/gpu", K8S / "overlays/gpu-spot"])
def test_gang_fits_its_pods(folder: Path) -> None:
    config = load_config(folder / "pipeline.yaml")
    (template,) = of_kind(render(folder), "RayCronJob")
    groups = at(template, "spec.jobTemplate.rayClusterSpec.workerGroupSpecs")
    gang = config.cluster.pretrain
    pods = groups[0]["replicas"]
    limits = groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gang.most_workers * gang.gpus == pods * int(limits["nvidia.com/gpu"])
    assert gang.most_workers * gang.cpus <= pods * int(limits["cpu"])


def test_names_with_hashes_reach_the_template() -> None:
    documents = render(K8S / "overlays/dev")
    settings = [one["metadata"]["name"] for one in of_kind(documents, "ConfigMap")]
    assert len(settings) == 2
    (template,) = of_kind(documents, "RayCronJob")
    text = yaml.safe_dump(template)
    assert all(text.count(name) == 2 for name in settings)


def test_dashboard_and_alerts_use_metrics_that_are_there() -> None:
    documents = with_components("monitoring")
    (dashboard,) = [
        one for one in of_kind(documents, "ConfigMap") if "dashboard.json" in one["data"]
    ]
    panels = json.loads(dashboard["data"]["dashboard.json"])["panels"]
    (rules,) = of_kind(documents, "PrometheusRule")
    text = json.dumps(panels) + json.dumps(rules)
    used = set(re.findall(r"ray_pretune_[a-z_]+", text))
    assert len(used) > 10
    assert used - gauges() == set()
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_stopping_hook_waits_for_the_driver_and_for_nothing_else(tmp_path: Path) -> None:
    (template,) = of_kind(render(K8S / "overlays/dev"), "RayCronJob")
    head = at(template, "spec.jobTemplate.rayClusterSpec.headGroupSpec.template.spec")
    command = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    fakes = {
        "pkill": f'echo "$@" > {tmp_path}/told',
        "pgrep": f'test "$*" = "-x pretune" && test ! -e {tmp_path}/ended',
        "sleep": f"touch {tmp_path}/ended",
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(command, env={"PATH": path}, check=False, timeout=20)
    assert (tmp_path / "told").read_text(encoding="utf-8") == "-TERM -x pretune\n"
    assert (tmp_path / "ended").exists()


def test_the_command_and_what_submit_appends_survive_both_shells(tmp_path: Path) -> None:
    """As KubeRay and Ray do: the submitter's bash, words quoted again, the head's sh."""
    (template,) = of_kind(render(K8S / "overlays/dev"), "RayCronJob")
    made = rayjob(template, Changes("nightly", overrides=["tasks.tone.metric=a b"]))
    (tmp_path / "ray").write_text(
        "#!/usr/bin/env python3\nimport shlex, sys\nprint(shlex.join(sys.argv[1:]))\n", "utf-8"
    )
    (tmp_path / "pretune").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', "utf-8")
    for name in ("ray", "pretune"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin:/usr/local/bin"
    command = ["bash", "-ce", f"ray {made['spec']['entrypoint']} ;"]
    sent = subprocess.run(command, env={"PATH": path}, capture_output=True, check=True)
    answer = subprocess.run(
        sent.stdout, shell=True, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines() == [
        "run",
        "/etc/pretune/pipeline.yaml",
        "--set",
        "cluster.address=auto",
        "--set",
        "cluster.wait_for_nodes_s=1800",
        "--set=tasks.tone.metric=a b",
    ]


def test_readme_knows_every_overlay_component_and_secret() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    folders = {str(path.relative_to(K8S)) for path in (*OVERLAYS, *COMPONENTS)}
    assert {name for name in folders | OUR_SECRETS if f"`{name}`" not in text} == set()


def test_yaml_is_tidy() -> None:
    answer = subprocess.run(
        [executable("yamllint"), "--strict", "-c", str(K8S / ".yamllint"), str(K8S)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
