"""The whole suite runs on a folder and on an object store."""

from pathlib import Path

import pytest
from own_steps import own_step

from workflows.artifacts import ARTIFACTS, Artifacts, Attempt, DamagedArtifactError
from workflows.leases import Owner
from workflows.ledger import Claim, DamagedEntryError, Position, Record, stem_of
from workflows.storage import Storage
from workflows.streams import DamagedFileError

STEP = own_step("count")
OTHER = own_step("other")


@pytest.fixture
def artifacts(storage: Storage) -> Artifacts:
    return Artifacts(storage)


def begin(artifacts: Artifacts, after: Position | None = None, run: str = "run") -> Attempt:
    attempt = artifacts.begin(STEP, after or Position(), run, lease_s=60)
    assert attempt is not None
    return attempt


def commit(artifacts: Artifacts, attempt: Attempt, run: str = "run") -> Position | None:
    return artifacts.commit(STEP, attempt, {"count": 3}, run=run, elapsed_s=1.5, source="311-abc")


def finish(artifacts: Artifacts, content: str = "result", after: Position | None = None) -> Record:
    attempt = begin(artifacts, after)
    (attempt.output / "sub").mkdir()
    (attempt.output / "sub" / "a.txt").write_text(content)
    (attempt.work / "scratch").write_text("no matter")
    assert commit(artifacts, attempt) is not None
    record = artifacts.find(STEP)
    assert record is not None
    return record


def keep(attempt: Attempt, folder: Path) -> None:
    """Make saved work outlive the node, as ranks do with checkpoints."""
    if not attempt.storage.is_local:
        relative = folder.relative_to(attempt.directory).as_posix()
        attempt.storage.upload(folder, f"{attempt.name}/{relative}")


def attempts(artifacts: Artifacts) -> list[str]:
    return artifacts.storage.names(f"{ARTIFACTS}/{STEP.kind}/{stem_of(STEP.fingerprint)}")


def test_step_is_done_when_it_is_committed_and_not_before(artifacts: Artifacts) -> None:
    attempt = begin(artifacts)
    (attempt.output / "a.txt").write_text("result")
    assert artifacts.find(STEP) is None
    position = commit(artifacts, attempt)
    assert position is not None
    assert (position.number, position.committed, position.source) == (2, 2, "311-abc")
    record = artifacts.find(STEP)
    assert record is not None
    assert record.facts == {"count": 3}
    assert record.spec["spec"] == {"text": "count"}
    assert list(record.files) == ["a.txt"]
    assert (artifacts.verified(record) / "a.txt").read_text() == "result"
    assert artifacts.find(OTHER) is None


def test_claim_is_given_to_one(artifacts: Artifacts) -> None:
    begin(artifacts, run="first")
    assert artifacts.begin(STEP, Position(), "second", lease_s=60) is None
    position = artifacts.ledger.position(STEP, Position())
    assert isinstance(position.entry, Claim)
    assert position.entry.run == "first"
    assert position.entry.owner == Owner.current()
    assert len(attempts(artifacts)) <= 1


@pytest.mark.parametrize("is_done_when_it_wakes", [False, True])
def test_late_owner_cannot_commit(artifacts: Artifacts, is_done_when_it_wakes: bool) -> None:
    late = begin(artifacts, run="frozen")
    (late.output / "a.txt").write_text("late")
    heir = begin(artifacts, after=late.claimed, run="heir")
    (heir.output / "a.txt").write_text("heir")
    if is_done_when_it_wakes:
        assert commit(artifacts, heir, "heir") is not None
        assert commit(artifacts, late, "frozen") is None
    else:
        assert commit(artifacts, late, "frozen") is None
        assert commit(artifacts, heir, "heir") is not None
    record = artifacts.find(STEP)
    assert record is not None
    assert record.run == "heir"
    assert (artifacts.verified(record) / "a.txt").read_text() == "heir"
    assert not late.directory.exists()
    assert attempts(artifacts) == [record.attempt]


def test_released_step_is_free_for_the_next(artifacts: Artifacts) -> None:
    failed = begin(artifacts)
    (failed.output / "half").write_text("done")
    artifacts.release(STEP, failed)
    position = artifacts.ledger.position(STEP, Position())
    assert commit(artifacts, failed) is None
    assert commit(artifacts, begin(artifacts, after=position)) is not None


def test_committed_attempt_cannot_be_given_up(artifacts: Artifacts) -> None:
    """As when an interrupt comes right behind the commit."""
    attempt = begin(artifacts)
    (attempt.output / "a.txt").write_text("result")
    commit(artifacts, attempt)
    artifacts.release(STEP, attempt)
    record = artifacts.find(STEP)
    assert record is not None
    assert (artifacts.verified(record) / "a.txt").read_text() == "result"


def test_saved_work_is_seen_by_later_attempts_and_gone_after_the_commit(
    artifacts: Artifacts,
) -> None:
    killed = begin(artifacts)
    saved = killed.work / "checkpoints" / "step-5"
    saved.mkdir(parents=True)
    (saved / "weights").write_text("five")
    keep(killed, saved)
    attempt = begin(artifacts, after=killed.claimed)
    ((place, name),) = attempt.earlier("checkpoints").items()
    earlier = artifacts.storage.fetched(name)
    assert earlier == place
    assert (earlier / "step-5" / "weights").read_text() == "five"
    attempt.go_on_with("checkpoints")
    copied = f"{attempt.name}/work/checkpoints/step-5/weights"
    assert artifacts.storage.read(copied) == b"five"
    assert commit(artifacts, attempt) is not None
    assert not artifacts.storage.exists(copied)
    assert not attempt.work.exists()


def test_step_computed_anew_replaces_the_result_and_goes_on_from_nothing(
    artifacts: Artifacts,
) -> None:
    killed = begin(artifacts)
    saved = killed.work / "checkpoints"
    saved.mkdir()
    (saved / "weights").write_text("old")
    keep(killed, saved)
    first = finish(artifacts, "first", after=killed.claimed)
    position = artifacts.ledger.positions([STEP])[STEP.fingerprint]
    anew = begin(artifacts, after=position)
    assert anew.earlier("checkpoints") == {}
    found = artifacts.find(STEP)
    assert found is not None
    assert found.attempt == first.attempt  # until the new one is committed
    (anew.output / "a.txt").write_text("second")
    commit(artifacts, anew)
    second = artifacts.find(STEP)
    assert second is not None
    assert (artifacts.verified(second) / "a.txt").read_text() == "second"


def test_commit_whose_marker_is_missing_is_found_and_marked_again(artifacts: Artifacts) -> None:
    finish(artifacts)
    (marker,) = artifacts.storage.names(f"done/{STEP.kind}")
    artifacts.storage.delete(f"done/{STEP.kind}/{marker}")
    assert artifacts.ledger.positions([STEP])[STEP.fingerprint].committed == 2
    assert artifacts.storage.names(f"done/{STEP.kind}") == [marker]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_is_found_before_use_and_named(artifacts: Artifacts, damage: str) -> None:
    record = finish(artifacts)
    artifacts.verified(record)
    name = f"{ARTIFACTS}/{STEP.kind}/{stem_of(STEP.fingerprint)}/{record.attempt}/output/sub/a.txt"
    contents = {"flip": b"resulT", "truncate": b"resul", "empty": b""}
    if damage == "remove":
        artifacts.storage.delete(name)
    else:
        artifacts.storage.write(name, contents[damage])
    if not artifacts.storage.is_local:
        # The copy on this node is still whole; another node would fetch the damaged file.
        assert (artifacts.verified(record) / "sub" / "a.txt").read_text() == "result"
        forget_copy(artifacts, record)
    with pytest.raises(DamagedArtifactError, match=r"count is damaged: sub/a\.txt.*--force count"):
        artifacts.verified(record)


def test_of_some_files_no_others_are_fetched_or_compared(artifacts: Artifacts) -> None:
    attempt = begin(artifacts)
    (attempt.output / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt", "large.bin"):
        (attempt.output / name).write_text(name)
    assert commit(artifacts, attempt) is not None
    record = artifacts.find(STEP)
    assert record is not None
    artifacts.storage.write(f"{attempt.name}/output/large.bin", b"damaged")
    found = artifacts.excerpt(record, ["a.txt", "sub/b.txt", "never written"])
    assert [(found / name).read_text() for name in ("a.txt", "sub/b.txt")] == ["a.txt", "sub/b.txt"]
    if not artifacts.storage.is_local:
        assert not (found / "large.bin").exists()
    with pytest.raises(DamagedFileError, match=r"large\.bin has other bytes"):
        artifacts.excerpt(record, ["large.bin"])


@pytest.mark.parametrize("content", [b"", b"{", b'{"entry": "commit"}', b"\0\0"])
def test_damaged_record_is_never_believed_and_named(artifacts: Artifacts, content: bytes) -> None:
    finish(artifacts)
    name = f"ledger/{STEP.kind}/{stem_of(STEP.fingerprint)}.000002.json"
    artifacts.storage.write(name, content)
    with pytest.raises(
        DamagedEntryError, match=r"000002\.json is damaged: .*compute the step anew"
    ):
        artifacts.find(STEP)


def test_damaged_copy_on_this_node_is_fetched_again(remote: Storage) -> None:
    artifacts = Artifacts(remote)
    record = finish(artifacts)
    copy = artifacts.verified(record) / "sub" / "a.txt"
    copy.write_text("resulT")
    assert (artifacts.verified(record) / "sub" / "a.txt").read_text() == "result"


def forget_copy(artifacts: Artifacts, record: Record) -> None:
    for path in sorted(artifacts.output(record).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    artifacts.output(record).rmdir()


def test_ten_thousand_finished_steps_are_told_by_few_listings(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an object store each listing call gives a thousand names; a step costs one name."""
    artifacts = Artifacts(storage)
    steps = [own_step(f"s{number}") for number in range(50)]
    for step in steps:
        attempt = artifacts.begin(step, Position(), "run", lease_s=60)
        assert attempt is not None
        artifacts.commit(step, attempt, {}, run="run")
    calls: list[str] = []
    plain_names, plain_read = Storage.names, Storage.read
    monkeypatch.setattr(
        Storage, "names", lambda self, folder: calls.append(folder) or plain_names(self, folder)
    )
    monkeypatch.setattr(
        Storage, "read", lambda self, name: calls.append(name) or plain_read(self, name)
    )
    positions = artifacts.ledger.positions(steps)
    assert all(position.committed == 2 for position in positions.values())
    assert calls == ["done/custom"]
    assert len(storage.names("done/custom")) == len(steps)


def test_output_folder_is_read_in_place_when_it_is_local(local: Storage) -> None:
    record = finish(Artifacts(local))
    assert Path(local.root) in Artifacts(local).output(record).parents
