"""Nodes in network namespaces of their own, so that the wire between them can be cut."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from conftest import write_pipeline
from nodes import DASHBOARD_PORT, Nodes, with_token
from processes import pretune, wait_for
from test_survival import in_peace, model_digests, reproducible_pipeline

from workflows.journal import read
from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak]

BRIDGE, NETWORK = "pretune0", "10.77.0"
TOKEN = "between-namespaces"
CUT_S = 10.0
"""Long enough for every call under way to be felt, and shorter than what Ray takes for a death."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Wires:
    """A bridge of this machine, and a wire from it into each namespace."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Self:
        # What a killed test has left.
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            ip("netns", "delete", name)
        ip("link", "delete", BRIDGE)

    def add(self) -> tuple[str, str]:
        """A namespace, and the address in it."""
        number = len(self.names) + 1
        name, address = f"pretune-{number}", f"{NETWORK}.{number}"
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "add", f"wire{number}", "type", "veth", "peer", "eth0", "netns", name)
        ip("link", "set", f"wire{number}", "master", BRIDGE, "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            ip("-n", name, "link", "set", link, "up")
        return name, address

    def cut(self, number: int) -> None:
        """Nothing gets through for a while, and nobody is told."""
        ip("link", "set", f"wire{number}", "down")
        time.sleep(CUT_S)
        ip("link", "set", f"wire{number}", "up")


@pytest.fixture
def wires() -> Iterator[Wires]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine allows no network namespaces")
    with Wires() as made:
        yield made


def test_a_network_that_is_cut_and_healed_changes_no_result(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, wires: Wires
) -> None:
    write_pipeline(tmp_path, reproducible_pipeline(tmp_path))
    disturbed = tmp_path / "disturbed"
    disturbed.mkdir()
    undisturbed = in_peace(tmp_path_factory.getbasetemp())
    settings = with_token(TOKEN) | {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}

    def saw(step: str, event: str) -> bool:
        events = read(Storage.at(disturbed), "runs/cut/events")
        return any(one.get("step") == step and one["event"] == event for one in events)

    with Nodes(settings) as nodes:
        for cpus in (1, 1):
            name, address = wires.add()
            nodes.add(cpus=cpus, through=("ip", "netns", "exec", name), host=address)
        url = f"http://{NETWORK}.1:{DASHBOARD_PORT}"
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        command = ("submit", "pipeline.yaml", "--address", url, "--storage", disturbed)
        sent = pretune(*command, "--run-id", "cut", "--detach", folder=tmp_path, **own)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        wait_for(lambda: saw("pretrain", "progress"))
        wires.cut(2)
        wait_for(lambda: saw("tone.tune", "trial"))
        wires.cut(2)
        ended = pretune("status", "cut", "--watch", "--storage", disturbed, folder=tmp_path, **own)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert model_digests(Storage.at(disturbed)) == model_digests(undisturbed)
    assert len(model_digests(Storage.at(disturbed))) == 2
