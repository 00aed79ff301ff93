import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from workflows import leases
from workflows.leases import Heartbeat, Owner, Watch
from workflows.storage import Storage

LEASE = "leases/count/abc"
ELSEWHERE = Owner(host="elsewhere", machine="another boot", pid=1, started=0)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_silence_for_the_whole_lease_is_death(storage: Storage) -> None:
    clock = Clock()
    watch = Watch(storage, clock)
    assert not watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)
    clock.now += 59
    assert not watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)
    clock.now += 2
    assert watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)


def test_any_sign_of_life_begins_the_lease_anew(storage: Storage) -> None:
    clock = Clock()
    watch = Watch(storage, clock)
    for beat in range(5):
        assert not watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)
        clock.now += 59
        storage.write(f"{LEASE}.1", str(beat).encode())
    assert not watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)


def test_another_holder_begins_the_lease_anew(storage: Storage) -> None:
    clock = Clock()
    watch = Watch(storage, clock)
    watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)
    clock.now += 61
    assert not watch.is_expired(LEASE, 3, ELSEWHERE, lease_s=60)


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0])
def test_clocks_that_differ_by_hours_change_nothing(local: Storage, skew_s: float) -> None:
    """The holder's times stand nowhere; the watcher's clock may begin anywhere."""
    clock = Clock()
    clock.now += skew_s
    watch = Watch(local, clock)
    assert not watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)
    clock.now += 61
    assert watch.is_expired(LEASE, 1, ELSEWHERE, lease_s=60)


def test_dead_process_of_this_machine_is_known_at_once(local: Storage) -> None:
    code = "from workflows.leases import Owner; print(Owner.current().model_dump_json())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    dead = Owner.model_validate_json(told.stdout)
    assert dead.is_known_dead
    assert not dead.is_known_alive
    assert Watch(local).is_expired(LEASE, 1, dead, lease_s=3600)


def test_living_process_is_not_dead_and_one_with_its_number_is_another() -> None:
    here = Owner.current()
    assert here.is_known_alive
    assert here.model_copy(update={"started": here.started - 100}).is_known_dead
    assert not ELSEWHERE.is_known_dead
    assert not ELSEWHERE.is_known_alive


def test_process_that_was_not_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.current().model_copy(
        update={"pid": child.pid, "started": leases._started(child.pid)}
    )
    assert owner.is_known_alive
    os.kill(child.pid, signal.SIGSTOP)
    assert owner.is_known_alive  # stopped is not dead: silence decides
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not owner.is_known_dead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner.is_known_dead
    child.wait()


def heartbeat(
    storage: Storage, lease_s: float, taken: threading.Event
) -> tuple[Heartbeat, list[int]]:
    lost: list[int] = []
    return Heartbeat(storage, LEASE, 1, lease_s, taken.is_set, lambda: lost.append(1)), lost


def test_holder_shows_signs_of_life_and_takes_them_away(storage: Storage) -> None:
    beating, lost = heartbeat(storage, 0.6, threading.Event())
    seen = set()
    with beating:
        for _ in range(40):
            seen |= set(storage.read_all([f"{LEASE}.1"]).values())
            time.sleep(0.05)
    assert len(seen) >= 3
    assert storage.names("leases/count") == []
    assert lost == []


def test_holder_learns_once_that_its_lease_was_taken(local: Storage) -> None:
    taken = threading.Event()
    beating, lost = heartbeat(local, 0.3, taken)
    with beating:
        taken.set()
        time.sleep(0.5)
    assert lost == [1]


def test_storage_that_fails_for_a_while_does_not_end_the_work(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("gone for a while")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", refuse)
        beating, lost = heartbeat(local, 0.3, threading.Event())
        beating.__enter__()
        time.sleep(0.2)
    time.sleep(0.2)
    assert local.names("leases/count") == ["abc.1"]
    beating.__exit__(None, None, None)
    assert lost == []
