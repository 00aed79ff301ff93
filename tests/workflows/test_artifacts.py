from pathlib import Path

import pytest

from trainers.config import Schema
from workflows.artifacts import Artifacts, DamagedArtifactError
from workflows.steps import Step


class Spec(Schema):
    number: int = 1


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path)


STEP = Step(name="count", kind="count", version=1, spec=Spec())


def finish(artifacts: Artifacts, content: str = "result") -> None:
    attempt = artifacts.begin(STEP)
    (attempt.output / "a.txt").write_text(content)
    (attempt.work / "scratch").write_text("no matter")
    artifacts.commit(STEP, attempt, {"count": 3}, elapsed_s=1.5)


def test_step_is_done_when_its_record_exists_and_not_before(artifacts: Artifacts) -> None:
    attempt = artifacts.begin(STEP)
    (attempt.output / "a.txt").write_text("result")
    assert artifacts.record(STEP) is None
    record = artifacts.commit(STEP, attempt, {"count": 3}, elapsed_s=1.5)
    assert artifacts.record(STEP) == record
    assert record.facts == {"count": 3}
    assert record.spec == {"number": 1}
    assert list(record.files) == ["a.txt"]
    assert (artifacts.output(STEP) / "a.txt").read_text() == "result"


def test_first_commit_wins_and_the_second_leaves_nothing(artifacts: Artifacts) -> None:
    first, second = artifacts.begin(STEP), artifacts.begin(STEP)
    (first.output / "a.txt").write_text("first")
    (second.output / "a.txt").write_text("second")
    won = artifacts.commit(STEP, second, {}, elapsed_s=0)
    late = artifacts.commit(STEP, first, {}, elapsed_s=0)
    assert late == won
    assert (artifacts.output(STEP) / "a.txt").read_text() == "second"
    assert not first.directory.exists()


def test_work_is_seen_by_later_attempts_and_gone_after_the_commit(artifacts: Artifacts) -> None:
    killed = artifacts.begin(STEP)
    (killed.work / "checkpoint").write_text("step 5")
    attempt = artifacts.begin(STEP)
    assert [path / "checkpoint" for path in attempt.earlier_work] == [killed.work / "checkpoint"]
    artifacts.commit(STEP, attempt, {}, elapsed_s=0)
    assert not attempt.work.exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_before_use_and_named(artifacts: Artifacts, damage: str) -> None:
    finish(artifacts)
    artifacts.verify(STEP)
    path = artifacts.output(STEP) / "a.txt"
    match damage:
        case "flip":
            path.write_text("resulT")
        case "truncate":
            path.write_text("resul")
        case "remove":
            path.unlink()
    with pytest.raises(DamagedArtifactError, match=r"count is damaged: a\.txt"):
        artifacts.verify(STEP)
