"""From facts to findings, as tables."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.preflight import Clock, Gpu, NodeFacts
from trainers.collective import AllReduce
from workflows import diagnosis
from workflows.diagnosis import HERE, Finding, Level, MlflowSight, StorageSpeed

OK, WARNING, ERROR = Level.OK, Level.WARNING, Level.ERROR
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "pretune": "0.1.0 (code ab)"}
HEALTHY = NodeFacts(
    address="10.0.0.1",
    versions=VERSIONS,
    cpus=8,
    ray_cpus=8.0,
    gpus=(),
    ray_gpus=0.0,
    gpu_problem=None,
    memory_bytes=64 * 10**9,
    shared_memory_bytes=32 * 10**9,
    temporary_folder="/tmp/ray",
    disk_bytes=10**12,
    disk_free_bytes=5 * 10**11,
    clock=Clock(0.001, 0.002),
    is_token_asked_for=True,
    unreached={},
)
GPU = Gpu("NVIDIA A100", "550.54", "81920")


def found(check: str, **changes: Any) -> list[Finding]:
    """Of two nodes, `a` as it should be and `b` with changes."""
    nodes = {"a": HEALTHY, "b": replace(HEALTHY, **changes)}
    return [one for one in diagnosis.of_nodes(nodes, VERSIONS) if one.check == check]


def test_of_healthy_nodes_there_is_one_line_a_check_and_all_are_fine() -> None:
    findings = diagnosis.of_nodes({"a": HEALTHY, "b": HEALTHY}, VERSIONS)
    assert len({finding.check for finding in findings}) == len(findings) == 8
    assert {finding.level for finding in findings} == {OK}


@pytest.mark.parametrize(
    ("check", "changes", "level", "told"),
    [
        ("machines", {"ray_cpus": 9.0}, WARNING, "Ray counts 9 CPUs where there are 8"),
        ("/dev/shm", {"shared_memory_bytes": 64 << 20}, WARNING, "64 MiB"),
        ("disk", {"disk_free_bytes": 4 * 10**10}, ERROR, "is 96% full (40.0 GB free)"),
        (
            "disk",
            {"disk_bytes": 5 * 10**10, "disk_free_bytes": 9 * 10**9},
            WARNING,
            "has 9.0 GB free",
        ),
        ("clocks", {"clock": Clock(2.5, 0.001)}, WARNING, "2.5 s ahead of this one"),
        ("clocks", {"clock": Clock(-901.0, 0.1)}, ERROR, "901.0 s behind this one"),
        ("ports", {"unreached": {"a 6 (raylet)": "timed out"}}, ERROR, "a 6 (raylet): timed out"),
        ("GPUs", {"ray_gpus": 1.0}, ERROR, "Ray counts 1 GPUs, nvidia-smi 0"),
        ("GPUs", {"gpus": (GPU,)}, WARNING, "Ray uses 0 of 1 GPUs"),
        ("GPUs", {"gpu_problem": "no driver"}, ERROR, "nvidia-smi: no driver"),
        (
            "GPUs",
            {"gpus": (GPU,), "ray_gpus": 1.0, "versions": VERSIONS | {"torch": "2.13.0+cpu"}},
            ERROR,
            "torch is built for CPUs alone",
        ),
    ],
)
def test_a_sick_node_is_named_with_a_remedy(
    check: str, changes: dict[str, Any], level: Level, told: str
) -> None:
    (finding,) = found(check, **changes)
    assert (finding.level, finding.node) == (level, "b")
    assert told in finding.what
    assert finding.remedy


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("clocks", {"clock": Clock(2.5, 2.0)}),  # as slow as the answer came, it may be right
        ("/dev/shm", {"shared_memory_bytes": None}),
        ("GPUs", {"gpus": (GPU,), "ray_gpus": 1.0}),
        ("token", {"is_token_asked_for": False, "address": "127.0.0.1"}),
    ],
)
def test_what_may_be_right_is_no_finding(check: str, changes: dict[str, Any]) -> None:
    (finding,) = found(check, **changes)
    assert finding.level is OK


def test_versions_that_differ_are_told_with_the_nodes_that_have_them() -> None:
    (finding,) = found("versions", versions=VERSIONS | {"ray": "2.59.0"})
    assert finding.level is ERROR
    assert finding.what == f"ray differs: 2.60.0 on {HERE}, a; 2.59.0 on b"
    (finding,) = found("versions", versions=VERSIONS | {"torch": None})
    assert finding.what == f"torch differs: 2.13.0 on {HERE}, a; none on b"


def test_drivers_that_differ_are_told() -> None:
    one = replace(HEALTHY, gpus=(GPU,), ray_gpus=1.0)
    other = replace(one, gpus=(replace(GPU, driver="560.1"),))
    findings = diagnosis.of_nodes({"a": one, "b": other}, VERSIONS)
    (finding,) = [one for one in findings if one.check == "GPUs"]
    assert finding.what == "drivers differ: 550.54 on a; 560.1 on b"


def test_a_cluster_that_asks_for_no_token_is_told_by_its_address() -> None:
    (finding,) = found("token", is_token_asked_for=False, address="10.0.0.2")
    assert finding.level is WARNING
    assert "whoever reaches 10.0.0.2 can run any code" in finding.what


def test_nodes_that_are_silent_are_errors() -> None:
    (finding,) = diagnosis.silent({"c": "no answer within 15.0 s"})
    assert (finding.level, finding.node) == (ERROR, "c")
    assert diagnosis.of_nodes({}, VERSIONS) == []


@pytest.mark.parametrize(("seconds", "level"), [(0.1, OK), (2.0, WARNING)])
def test_all_reduce_that_is_slow_is_told(seconds: float, level: Level) -> None:
    finding = diagnosis.of_all_reduce(AllReduce("gloo", ("a", "b"), 10**8, seconds))
    assert finding.level is level


def test_all_reduce_that_failed_is_told_by_node() -> None:
    (finding,) = diagnosis.of_failed_all_reduce({"b": "TimeoutError: 1 of 2 nodes came"})
    assert (finding.level, finding.node) == (ERROR, "b")


@pytest.mark.parametrize(("ranks", "rate"), [(2, 1e9), (4, 1.5e9)])
def test_bus_bandwidth_is_that_of_nccl_tests(ranks: int, rate: float) -> None:
    assert AllReduce("gloo", ("n",) * ranks, 10**9, 1.0).bus_bytes_per_s == rate


def test_storage_that_a_node_does_not_see_is_told_by_its_name() -> None:
    findings = diagnosis.of_storage("/data", {"a": None, "b": "there is no such file"}, "share it")
    told = "/data is not seen: there is no such file"
    assert findings == [Finding("storage", ERROR, told, "b", "share it")]
    (finding,) = diagnosis.of_storage("/data", {"a": None, "b": None}, "share it")
    assert (finding.level, finding.what) == (OK, "/data is seen by all 2 nodes")


def test_storage_that_is_slow_or_read_only_is_told() -> None:
    speeds = {"a": StorageSpeed(1e9, 1e8), "b": StorageSpeed(1e9, 2e6)}
    assert [(one.level, one.node) for one in diagnosis.of_speeds(speeds, {"c": "read-only"})] == [
        (ERROR, "c"),
        (WARNING, "b"),
    ]
    (finding,) = diagnosis.of_speeds({"a": StorageSpeed(1e9, 1e8)}, {})
    assert finding.what == "the slowest node: reads 1,000 MB/s, writes 100 MB/s"


@pytest.mark.parametrize(
    ("here", "there", "level", "told"),
    [
        (MlflowSight(None), MlflowSight(None), OK, "no server is set"),
        (MlflowSight("http://m"), MlflowSight("http://m"), OK, "http://m is what all nodes use"),
        (MlflowSight("http://m"), MlflowSight(None), WARNING, "not set there, and http://m here"),
        (
            MlflowSight("http://m"),
            MlflowSight("http://m", "does not answer (ConnectTimeout)"),
            WARNING,
            "http://m: does not answer",
        ),
    ],
)
def test_mlflow(here: MlflowSight, there: MlflowSight, level: Level, told: str) -> None:
    (finding,) = diagnosis.of_mlflow(here, {"a": there})
    assert finding.level is level
    assert told in finding.what
