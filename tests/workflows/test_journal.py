"""The whole suite runs on a folder and on an object store, but for what only a folder has."""

import pickle

from workflows.journal import Journal, Tail, read
from workflows.storage import Storage

EVENTS = "runs/r/events"


def test_events_of_several_writers_are_read_in_the_order_of_time(storage: Storage) -> None:
    first, second = Journal(storage, EVENTS, "a"), Journal(storage, EVENTS, "b")
    first.append("x", number=1)
    second.append("x", number=2)
    first.append("x", number=3)
    first.flush()
    assert [event["number"] for event in read(storage, EVENTS)] == [1, 2, 3]


def test_journal_goes_to_other_processes(storage: Storage) -> None:
    journal: Journal = pickle.loads(pickle.dumps(Journal(storage, EVENTS, "a")))
    journal.append("x", number=1)
    journal.flush()
    assert [event["number"] for event in read(storage, EVENTS)] == [1]


def test_tail_gives_each_event_once(storage: Storage) -> None:
    journal, tail = Journal(storage, EVENTS, "a"), Tail(storage, EVENTS)
    assert tail.new() == []
    for number in range(3):
        journal.append("x", number=number)
        journal.flush()
        assert [event["number"] for event in tail.new()] == [number]
    assert tail.new() == []


def test_many_events_make_few_objects(remote: Storage) -> None:
    journal = Journal(remote, EVENTS, "a")
    for number in range(1000):
        journal.append("x", number=number)
    journal.flush()
    assert len(remote.names(EVENTS)) <= 5
    assert len(read(remote, EVENTS)) == 1000


def test_tail_gives_no_half_line(local: Storage) -> None:
    journal, tail = Journal(local, EVENTS, "a"), Tail(local, EVENTS)
    journal.append("x", number=1)
    assert [event["number"] for event in tail.new()] == [1]
    path = local.path(f"{EVENTS}/a.jsonl")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole[:10], encoding="utf-8")
    assert tail.new() == []
    path.write_text(whole + whole, encoding="utf-8")
    assert [event["number"] for event in tail.new()] == [1]
    assert tail.new() == []


def test_half_a_line_is_no_event_and_hides_no_later_one(local: Storage) -> None:
    """A full disk cut the line; what was appended to it is lost with it, the next is not."""
    journal = Journal(local, EVENTS, "a")
    journal.append("x", number=1)
    with local.path(f"{EVENTS}/a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "ev')
    assert [event["number"] for event in read(local, EVENTS)] == [1]
    journal.append("x", number=2)
    journal.append("x", number=3)
    assert [event["number"] for event in read(local, EVENTS)] == [1, 3]
