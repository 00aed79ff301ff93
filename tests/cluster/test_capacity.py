import pytest

from cluster.capacity import CapacityError, check, largest, poll_s, slots, trials_at_once
from cluster.config import ClusterConfig, GangConfig, TrialConfig, WorkerConfig
from cluster.interface import Capacity


@pytest.mark.parametrize(
    ("capacity", "worker", "expected"),
    [
        (Capacity.of((8, 0)), WorkerConfig(cpus=1), 8),
        (Capacity.of((8, 0)), WorkerConfig(cpus=3), 2),
        (Capacity.of((8, 2)), WorkerConfig(cpus=1, gpus=1), 2),
        (Capacity.of((8, 2)), WorkerConfig(cpus=1, gpus=0.5), 4),
        (Capacity.of((1, 2)), WorkerConfig(cpus=1, gpus=0.5), 1),
        (Capacity.of((8, 0)), WorkerConfig(cpus=1, gpus=1), 0),
        (Capacity.of((4, 0), (4, 0)), WorkerConfig(cpus=3), 2),
        (Capacity.of((4, 0), (4, 0)), WorkerConfig(cpus=5), 0),
        (Capacity.of((8, 0), (1, 4)), WorkerConfig(cpus=2, gpus=1), 0),
        (Capacity.of((8, 2)), WorkerConfig(cpus=1, gpus=0.4), 4),
        (Capacity.of((20, 1)), WorkerConfig(cpus=1, gpus=0.1), 10),
    ],
)
def test_slots_follow_from_what_is_scarcest(
    capacity: Capacity, worker: WorkerConfig, expected: int
) -> None:
    assert slots(capacity, worker) == expected


def test_the_controller_of_a_large_gang_asks_less_often() -> None:
    assert [poll_s(workers) for workers in (1, 64, 500, 10_000)] == [0.5, 0.5, 0.5, 10.0]


def test_more_workers_than_the_cluster_holds_are_refused_with_a_way_out() -> None:
    config = ClusterConfig(pretrain=GangConfig(workers=4, cpus=1))
    check(config, Capacity.of((4, 0)), {})
    with pytest.raises(CapacityError, match=r"4 workers .* lower cluster\.pretrain\.workers"):
        check(config, Capacity.of((3, 0)), {})


def test_workers_that_no_node_can_hold_are_refused_with_the_largest_node() -> None:
    config = ClusterConfig(pretrain=GangConfig(workers=2, cpus=5))
    told = (
        r"2 workers with 5 CPUs each, but the whole cluster has 12 CPUs and 0 GPUs on 3 nodes, the "
        r"largest with 4 CPUs and 0 GPUs; ask for less, .*cluster\.wait_for_nodes_s"
    )
    with pytest.raises(CapacityError, match=told):
        check(config, Capacity.of((4, 0), (4, 0), (4, 0)), {})


def test_an_autoscaler_is_told_of_the_largest_demand() -> None:
    config = ClusterConfig(
        pretrain=GangConfig(workers=2, cpus=4, gpus=1), trials=TrialConfig(cpus=16)
    )
    assert largest(config, {"clean": WorkerConfig(cpus=1)}) == [{"CPU": 4, "GPU": 1}] * 2


def test_trial_that_needs_a_missing_gpu_is_refused() -> None:
    config = ClusterConfig(trials=TrialConfig(cpus=1, gpus=1))
    with pytest.raises(CapacityError, match=r"cluster\.trials asks for 1 CPUs and 1 GPUs"):
        check(config, Capacity.of((4, 0)), {})


@pytest.mark.parametrize(("searches", "expected"), [(1, 4), (2, 2), (3, 1), (9, 1), (0, 4)])
def test_searches_share_the_cluster(searches: int, expected: int) -> None:
    assert trials_at_once(Capacity.of((4, 0)), TrialConfig(cpus=1), searches) == expected


def test_workers_of_one_trial_run_together_or_not_at_all() -> None:
    three = TrialConfig(workers=3)
    assert [trials_at_once(Capacity.of((cpus, 0)), three, 1) for cpus in (3, 5, 6)] == [1, 1, 2]
    check(ClusterConfig(trials=three), Capacity.of((3, 0)), {})
    with pytest.raises(CapacityError, match=r"trials asks for 3 workers with 1 CPUs each, but"):
        check(ClusterConfig(trials=three), Capacity.of((2, 0)), {})


def test_own_step_that_could_never_start_is_refused() -> None:
    own = {"clean": WorkerConfig(cpus=2), "filter": WorkerConfig(gpus=1)}
    with pytest.raises(CapacityError, match=r"steps\.filter\.resources asks for 1 CPUs and 1 GPUs"):
        check(ClusterConfig(), Capacity.of((4, 0)), own)
    check(ClusterConfig(), Capacity.of((4, 1)), own)
