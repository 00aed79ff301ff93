"""Pipelines submitted to a real Ray of two nodes that asks for a token."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline
from nodes import ADDRESS, URL, Nodes, with_token
from processes import PRETUNE, pretune, wait_for
from test_survival import model_digests, reproducible_pipeline

from workflows.history import run_ids
from workflows.journal import read
from workflows.models import ModelStore
from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOKEN = f"canary-{secrets.token_hex(16)}"
NO_TOKEN = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
LONG = ("--set", "pretrain.tokens=102400", "--set", "pretrain.seed=1")


@dataclass
class Place:
    """A pipeline beside a storage that all nodes see, and what was printed about it."""

    folder: Path
    nodes: Nodes
    printed: str = ""
    undisturbed: Any = None
    """Digests of the models of a run in which nothing happened."""

    @property
    def storage(self) -> Storage:
        return Storage.at(self.folder / "storage")

    def call(self, *arguments: object, token: str | None = "token", **settings: str) -> Any:
        given = ("--token-file", token) if token else ()
        answer = pretune(*arguments, *given, folder=self.folder, **(NO_TOKEN | settings))
        self.printed += answer.stdout + answer.stderr
        return answer

    def submit(self, *arguments: object, **more: Any) -> Any:
        return self.call("submit", "pipeline.yaml", "--address", URL, *arguments, **more)

    def steps_of(self, run: str) -> list[int]:
        """Optimizer steps of pretraining, as they were told."""
        return [
            event["optimizer_step"]
            for event in read(self.storage, f"runs/{run}/events")
            if event.get("step") == "pretrain" and "optimizer_step" in event
        ]


def driver_of(run: str) -> Path:
    """The directory in /proc of the process that drives a run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            if b"run" in arguments and f"--run-id={run}".encode() in arguments:
                return path.parent
    raise AssertionError(f"no driver of {run}")


def assert_light(driver: Path) -> None:
    """It computes nothing: what trains is loaded by others."""
    assert "libtorch" not in (driver / "maps").read_text()
    status = (driver / "status").read_text()
    (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(f"peak memory of the driver: {int(peak_kb) / 1024:.0f} MiB")
    assert int(peak_kb) < 500 * 1024


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("submitted")
    write_pipeline(folder, reproducible_pipeline(folder))
    (folder / "storage").mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / ".rayignore").write_text("token\nwrong\n")
    with Nodes(with_token(TOKEN)) as nodes:
        nodes.add(cpus=0)
        nodes.add(cpus=2)
        yield Place(folder, nodes)


def test_tokens_that_are_missing_or_wrong_are_told(place: Place) -> None:
    (place.folder / "wrong").write_text("another")
    for token, told in ((None, "wants a token: give --token-file"), ("wrong", "refuses the token")):
        answer = place.submit(token=token)
        assert answer.returncode == 2
        assert told in answer.stderr
    answer = place.submit("--dry-run")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["entrypoint"].startswith("pretune run pipeline.yaml --run-id=")
    assert run_ids(place.storage) == []
    for token, told in (("another", "refuses the token"), (TOKEN, "0 nodes with an id")):
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        where = ("--address", ADDRESS, "--node", "nosuch")
        answer = place.call("drain", *where, token=None, **environment)
        assert answer.returncode == 2
        assert told in answer.stderr
        assert "Traceback" not in answer.stderr


def test_what_no_node_can_take_is_withdrawn_in_time(place: Place) -> None:
    late = ("--run-id", "late", "--driver-on", "nowhere", "--pending-timeout", 3)
    answer = place.submit(*late)
    assert answer.returncode == 3, answer.stdout + answer.stderr
    assert "waiting for resources" in answer.stdout
    assert "Its driver wants a node with nowhere. Nodes: 2, with CPU 2." in answer.stdout
    assert "not begun within 3 s, and withdrawn" in answer.stdout
    status = place.call("status", "late", "--storage", "storage", "--json")
    assert json.loads(status.stdout)["cluster"]["state"] == "pending"


def test_a_submitted_pipeline_promotes_and_the_same_command_again_is_no_second_run(
    place: Place,
) -> None:
    answer = place.submit("--run-id", "nightly")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "pretrain: done" in answer.stdout
    assert "tiny.tone@1 promoted" in answer.stdout
    assert ModelStore(place.storage).champion("tiny.tone") is not None
    place.undisturbed = model_digests(place.storage)
    before = read(place.storage, "runs/nightly/events")
    again = place.submit("--run-id", "nightly")
    assert again.returncode == 0
    assert "run nightly was there: attached" in again.stdout
    assert read(place.storage, "runs/nightly/events") == before
    other = place.submit("--run-id", "nightly", "--set", "pretrain.seed=9")
    assert other.returncode == 2
    assert "there is a run nightly with another command" in other.stderr


def test_a_run_is_known_by_its_name(place: Place) -> None:
    storage = ("--storage", "storage")
    listed = place.call("list", *storage, "--address", URL, "--json")
    rows = {row["run"]: row for row in json.loads(listed.stdout)}
    assert rows["nightly"]["outcome"] == rows["nightly"]["cluster"] == "succeeded"
    assert rows["late"]["cluster"] == "pending"
    status = json.loads(place.call("status", "nightly", *storage, "--json").stdout)
    assert status["outcome"] == "succeeded"
    assert {step["state"] for step in status["steps"].values()} == {"done"}
    steps = len(status["steps"])
    assert rows["nightly"]["steps"] == f"{steps}/{steps}"
    assert "steps done" in place.call("logs", "nightly", *storage).stdout
    assert "saved checkpoint" in place.call("logs", "nightly", "pretrain", *storage).stdout
    unknown = place.call("logs", "nightly", "pretrian", *storage)
    assert unknown.returncode == 2
    assert "has logs of: " in unknown.stderr


def test_stopped_in_the_middle_it_goes_on_from_its_checkpoint(place: Place) -> None:
    storage = ("--storage", "storage")
    answer = place.submit("--run-id", "first", "--detach", *LONG)
    assert answer.returncode == 0, answer.stderr
    wait_for(lambda: any(step >= 20 for step in place.steps_of("first")))
    assert_light(driver_of("first"))
    assert place.call("stop", "first", *storage, token=None).returncode == 0
    watched = place.call("status", "first", "--watch", *storage)
    assert watched.returncode == 4, watched.stdout + watched.stderr
    assert "what was finished is kept, give another --run-id to go on" in watched.stdout
    assert place.steps_of("first")[-1] < 400

    command = [PRETUNE, "submit", "pipeline.yaml", "--address", URL, "--token-file", "token"]
    following = subprocess.Popen(
        [*command, "--run-id", "second", *LONG],
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | NO_TOKEN,
        # A shell has what it starts in the background ignore it, and what that starts, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: bool(place.steps_of("second")))
    following.send_signal(signal.SIGINT)
    told, _ = following.communicate(timeout=60)
    place.printed += told
    assert following.returncode == 0
    assert (
        f"left alone, it goes on; to look again: pretune status second --watch --address {URL}"
        in told
    )
    first = place.steps_of("second")[0]
    wait_for(lambda: place.steps_of("second")[-1] > first)  # it does go on
    assert first > 5
    # Asked through the cluster, a driver has as long as the head gives it.
    assert place.call("stop", "second", *storage, "--address", URL).returncode == 0
    watched = place.call("status", "second", "--watch", *storage)
    assert watched.returncode == 4


def test_the_token_is_nowhere_to_be_read(place: Place) -> None:
    """After the other tests: in what they printed, stored and logged, and in what Ray logged."""
    assert place.printed
    assert TOKEN not in place.printed
    places = [place.folder / "storage", *Path("/tmp").glob(f"nodes-{os.getpid()}/session_*/logs")]
    files = [path for folder in places for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in files)
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    arguments = [
        path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    ]
    assert not any(TOKEN.encode() in line for line in arguments)


def test_killed_nodes_cost_time_and_not_results(place: Place) -> None:
    """The last one: a node dies while pretraining runs, then in the search all of them."""
    disturbed = Storage.at(place.folder / "disturbed")
    (place.folder / "disturbed").mkdir()
    again = ("--run-id", "hard", "--storage", place.folder / "disturbed")

    def saw(step: str, event: str) -> bool:
        events = read(disturbed, "runs/hard/events")
        return any(one.get("step") == step and one["event"] == event for one in events)

    assert place.submit(*again, "--detach").returncode == 0
    wait_for(lambda: saw("pretrain", "progress"))
    place.nodes.kill(1)
    place.nodes.add(cpus=2)
    wait_for(lambda: saw("tone.tune", "trial"))
    place.nodes.kill(1)
    place.nodes.kill(0)
    place.nodes.add(cpus=0)
    place.nodes.add(cpus=2)

    lost = place.call("status", "hard", "--storage", "disturbed", "--watch")
    assert lost.returncode == 5, lost.stdout
    assert "the cluster knows of no such run" in lost.stdout
    ended = place.submit(*again)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert run_ids(disturbed) == ["hard"]
    assert model_digests(disturbed) == place.undisturbed
    assert len(place.undisturbed) == 2
