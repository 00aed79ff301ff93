"""Shards of a step: each computed once, whatever dies around it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_steps import context, own_step

from cluster.interface import TaskFailedError
from cluster.local import LocalCluster
from workflows.artifacts import Artifacts
from workflows.execution import StageContext
from workflows.ledger import Position
from workflows.shards import Done, Shards
from workflows.storage import Storage


@dataclass(frozen=True)
class Item:
    number: int
    words: Path
    calls: Path
    directory: Path


@dataclass(frozen=True)
class Length:
    length: int
    words: list[str]


def write_word(item: Item) -> Length:
    """Writes a word; that of number 2 cannot be written while a file says so."""
    with item.calls.open("a") as file:
        file.write(f"{item.number} ")
    assert list(item.directory.iterdir()) == []
    (item.directory / "half").write_text("x")
    if item.number == 2 and item.calls.with_name("breaks").exists():
        raise KeyError("the code's own error")
    word = (item.words / "words").read_text().split()[item.number]
    (item.directory / "word").write_text(word)
    return Length(len(word), [word])


class Step:
    """A step with three shards, tried again and again."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage, self.calls = storage, folder / "calls"
        self.artifacts, self.step = Artifacts(storage), own_step("s", function="nothing")

    def attempt(self) -> StageContext:
        position = self.artifacts.ledger.position(self.step, Position())
        attempt = self.artifacts.begin(self.step, position, "run", 60.0)
        assert attempt is not None
        run = context(self.storage, LocalCluster(), "run")
        return StageContext(run, self.step, attempt, self.artifacts, {})

    def give_up(self, stage: StageContext) -> None:
        self.artifacts.release(self.step, stage.attempt)

    def compute(self, shards: Shards) -> list[Done[Length]]:
        shards.share("words").mkdir(parents=True, exist_ok=True)
        (shards.share("words") / "words").write_text("zero one two")
        items = [
            Item(number, shards.share("words"), self.calls, shards.directory("write", number))
            for number in range(3)
        ]
        return shards.compute("write", write_word, items, Length)

    def called(self) -> list[int]:
        return [int(number) for number in self.calls.read_text().split()]


@pytest.fixture
def step(storage: Storage, tmp_path: Path) -> Step:
    return Step(storage, tmp_path)


def test_results_come_in_the_items_order_and_files_are_placed(step: Step) -> None:
    stage = step.attempt()
    shards = Shards(stage)
    done = step.compute(shards)
    assert [shard.result for shard in done] == [
        Length(4, ["zero"]),
        Length(3, ["one"]),
        Length(3, ["two"]),
    ]
    for number, shard in enumerate(done):
        shards.place(shard, "word", f"word-{number}")
    placed = {path.name: path.read_text() for path in stage.output.iterdir()}
    assert placed == {"word-0": "zero", "word-1": "one", "word-2": "two"}


def test_what_an_attempt_has_done_is_not_done_again(step: Step) -> None:
    step.calls.with_name("breaks").touch()
    first = step.attempt()
    with pytest.raises(TaskFailedError, match="the code's own error"):
        step.compute(Shards(first))
    step.give_up(first)
    assert step.called() == [0, 1, 2]
    step.calls.with_name("breaks").unlink()
    for later in ([2], []):  # the second of these attempts finds shards of both before it
        stage = step.attempt()
        shards = Shards(stage)
        before = len(step.called())
        done = step.compute(shards)
        assert [shard.result.words for shard in done] == [["zero"], ["one"], ["two"]]
        assert step.called()[before:] == later
        for number, shard in enumerate(done):
            shards.place(shard, "word", f"word-{number}")
        assert (stage.output / "word-0").read_text() == "zero"
        step.give_up(stage)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change(file: Path) -> None:
    file.write_bytes(b"\xff" + file.read_bytes()[1:])


@pytest.mark.parametrize("damage", [cut_short, change, Path.unlink])
@pytest.mark.parametrize("file", ["000001/word", "000001.json"])
def test_shard_that_is_not_whole_is_computed_again(
    local: Storage, tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    step = Step(local, tmp_path)
    first = step.attempt()
    step.compute(Shards(first))
    damage(first.attempt.work / "shards" / "write" / file)
    step.give_up(first)
    done = step.compute(Shards(step.attempt()))
    assert [shard.result.words for shard in done] == [["zero"], ["one"], ["two"]]
    assert (done[1].directory / "word").read_text() == "one"
    assert step.called() == [0, 1, 2, 1]


def test_shard_without_a_file_in_an_object_store_is_computed_again(
    remote: Storage, tmp_path: Path
) -> None:
    step = Step(remote, tmp_path)
    first = step.attempt()
    step.compute(Shards(first))
    remote.delete(f"{first.attempt.name}/work/shards/write/000001/word")
    step.give_up(first)
    step.compute(Shards(step.attempt()))
    assert step.called() == [0, 1, 2, 1]
