"""The image is built from fixed versions, runs as nobody in particular, and holds no secret.

There is no Docker where these tests run: what can be read is read, and nothing is built.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from rendering import K8S, ROOT, executable, of_kind, render
from world import World, locked

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCKS = ("requirements.lock", "requirements-image.lock")
_SECRET = re.compile(r"(?i)(password|secret|token|api_?key|credential)")


class Instruction(NamedTuple):
    """One line of a Dockerfile, continued lines joined."""

    name: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """All but comments."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n?", "", text))
    lines = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(first.upper(), rest) for first, rest in lines]


def findings(text: str) -> Iterator[str]:
    """What is wrong with a Dockerfile, a sentence each."""
    found = instructions(text)
    arguments = {one.rest.partition("=")[0]: one.rest for one in found if one.name == "ARG"}
    for one in found:
        if one.name == "FROM" and (":" not in one.rest or ":latest" in one.rest):
            yield f"the base {one.rest} has no fixed tag"
        if one.name in {"ARG", "ENV"} and _SECRET.search(one.rest):
            yield f"{one.name} {one.rest} would stay in the image's history"
        if one.name == "ADD":
            yield "ADD fetches and unpacks: COPY does neither"
    users = [one.rest for one in found if one.name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "the last USER is no number above 0"
    installs = [one.rest for one in found if "pip install" in one.rest]
    for name in LOCKS:
        if not any(f"-r {name}" in one for one in installs):
            yield f"{name} is not what is installed"
    if any("-r " not in one and "--no-deps" not in one for one in installs):
        yield "an installation takes versions that no lock has"
    for name in arguments:
        if not re.search(rf"(?m)^# {name} +\S", text):
            yield f"ARG {name} is not explained above"


GOOD = "FROM python:3.11.14\nRUN pip install -r requirements.lock -r requirements-image.lock\n"


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (GOOD + "USER 1000\n", None),
        (GOOD, "the last USER is no number above 0"),
        (GOOD + "USER root\n", "the last USER is no number above 0"),
        (GOOD + "USER 1000\nUSER 0\n", "the last USER is no number above 0"),
        (GOOD.replace(":3.11.14", "") + "USER 1\n", "the base python has no fixed tag"),
        (
            GOOD.replace("3.11.14", "latest") + "USER 1\n",
            "the base python:latest has no fixed tag",
        ),
        (
            GOOD + "ENV API_KEY=a\nUSER 1\n",
            "ENV API_KEY=a would stay in the image's history",
        ),
        (GOOD + "ADD a b\nUSER 1\n", "ADD fetches and unpacks: COPY does neither"),
        (
            GOOD.replace(" -r requirements-image.lock", "") + "USER 1\n",
            "requirements-image.lock is not what is installed",
        ),
        (
            GOOD + "RUN pip install ray\nUSER 1\n",
            "an installation takes versions that no lock has",
        ),
        (GOOD + "ARG INDEX\nUSER 1\n", "ARG INDEX is not explained above"),
    ],
)
def test_bad_dockerfiles_are_found(text: str, finding: str | None) -> None:
    assert list(findings(text)) == ([] if finding is None else [finding])


def test_the_dockerfile_keeps_every_rule() -> None:
    assert list(findings(DOCKERFILE)) == []


def test_the_linter_finds_nothing() -> None:
    answer = subprocess.run(
        [executable("hadolint"), str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout


def test_the_image_runs_as_the_user_whom_the_manifests_name() -> None:
    (user,) = [one.rest for one in instructions(DOCKERFILE) if one.name == "USER"]
    ray = [pod for pod in World(render(K8S / "overlays/gpu")).pods if pod.is_ray]
    assert {pod.spec["securityContext"]["runAsUser"] for pod in ray} == {int(user.split(":")[0])}


def test_tag_names_the_versions_that_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tag = f"{project['version']}-ray{locked('ray')}-"
    assert DOCKERFILE.count(f"registry.example.org/pretune:{tag}") == 2
    (cronjob,) = of_kind(render(K8S / "overlays/gpu"), "CronJob")
    image = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example.org/pretune:{tag}gpu"


def test_locks_agree() -> None:
    names = (*LOCKS, "requirements-test.lock")
    pins: dict[str, set[str]] = {}
    for name in names:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if "==" in line:
                package, version = line.lower().split("==")
                pins.setdefault(package, set()).add(version)
    assert {package: versions for package, versions in pins.items() if len(versions) > 1} == {}


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    allowed = {line[1:] for line in ignore if line.startswith("!")} - {"Dockerfile"}
    copied = {
        word
        for one in instructions(DOCKERFILE)
        if one.name == "COPY"
        for word in one.rest.split()[:-1]
    }
    assert allowed == copied


def test_every_package_is_installed() -> None:
    """An editable installation has them all, whatever pyproject.toml lists; an image has not."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("cluster", "trainers", "workflows")
        for path in (ROOT / name).glob("**/__init__.py")
    }
    assert set(listed) == there
