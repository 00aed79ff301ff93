"""A function of a dataclass with paths, run as on another node."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from workflows.exchange import Exchange
from workflows.storage import Storage


@dataclass(frozen=True)
class Item:
    number: int
    source: Path
    saved: tuple[Path, ...]
    model: Path
    """Written by one function, read by another."""
    output: Path


def train(item: Item) -> str:
    """Reads inputs, writes a model and a part of the output."""
    text = (item.source / "in.txt").read_text() + "".join(p.read_text() for p in item.saved)
    item.model.mkdir()
    (item.model / "weights").write_text(text)
    (item.output / f"part-{item.number}").write_text(text)
    return text


def read_back(item: Item) -> str:
    """Reads what `train` wrote, perhaps on another node."""
    return (item.model / "weights").read_text()


@pytest.fixture
def attempt(remote: Storage, tmp_path: Path) -> Path:
    """The attempt's folder on the step's node."""
    folder = tmp_path / "step" / "attempt"
    (folder / "output").mkdir(parents=True)
    return folder


@pytest.fixture
def exchange(
    remote: Storage, attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Exchange:
    remote.write("artifacts/x/output/in.txt", b"in")
    remote.write("artifacts/y/work/five", b"+five")
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "step"))
    inputs = {
        remote.place("artifacts/x/output"): "artifacts/x/output",
        remote.place("artifacts/y/work"): "artifacts/y/work",
    }
    return Exchange(remote, "artifacts/z/attempt", attempt, inputs)


def item(exchange: Exchange, number: int) -> Item:
    source, saved = exchange.inputs
    return Item(
        number=number,
        source=source,
        saved=(saved / "five",),
        model=exchange.directory / "work" / "models" / str(number),
        output=exchange.directory / "output",
    )


def test_what_is_written_on_other_nodes_comes_back(
    exchange: Exchange, attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item(exchange, number) for number in range(3)]
    found = []
    for node, one in zip(("a", "b", "step"), items, strict=True):
        monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / node))
        found.append(exchange.mapped(train)(one))
        assert list((tmp_path / node / "desks").iterdir()) == []
    assert found == ["in+five"] * 3
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "c"))
    assert exchange.mapped(read_back)(items[0]) == "in+five"
    assert not list((attempt / "output").iterdir())
    exchange.collect(attempt / "output")
    assert sorted(path.name for path in (attempt / "output").iterdir()) == [
        "part-0",
        "part-1",
        "part-2",
    ]
    exchange.collect(items[1].model)
    assert (items[1].model / "weights").read_text() == "in+five"


def test_in_a_folder_that_all_nodes_see_all_read_and_write_in_place(
    local: Storage, tmp_path: Path
) -> None:
    exchange = Exchange(local, "artifacts/z/attempt", tmp_path, {})
    assert exchange.mapped(train) is train


def test_ranks_that_see_no_common_folder_put_a_checkpoint_together(exchange: Exchange) -> None:
    work = item(exchange, 0)
    with exchange.desk(work) as (first, one), exchange.desk(work) as (second, other):
        for rank, (here, desk) in enumerate(((first, one), (second, other))):
            checkpoint = here.model / "step-5"
            checkpoint.mkdir(parents=True)
            (checkpoint / f"rank{rank}").write_text(str(rank))
            desk.push(checkpoint)
        one.pull(first.model / "step-5")
        together = sorted(path.name for path in (first.model / "step-5").iterdir())
        assert together == ["rank0", "rank1"]
        assert [path.name for path in (second.model / "step-5").iterdir()] == ["rank1"]
    with exchange.desk(work) as (again, desk):  # what a restarted rank finds
        assert sorted(path.name for path in (again.model / "step-5").iterdir()) == together
        desk.remove(again.model / "step-5")
    with exchange.desk(work) as (after, _):
        assert not after.model.exists()
