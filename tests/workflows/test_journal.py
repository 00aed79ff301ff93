from pathlib import Path

from workflows.journal import Journal, Tail, read


def test_events_of_several_writers_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, "a"), Journal(tmp_path, "b")
    first.append("x", number=1)
    second.append("x", number=2)
    first.append("x", number=3)
    assert [event["number"] for event in read(tmp_path)] == [1, 2, 3]


def test_tail_gives_each_event_once_and_no_half_line(tmp_path: Path) -> None:
    journal, tail = Journal(tmp_path, "a"), Tail(tmp_path)
    journal.append("x", number=1)
    assert [event["number"] for event in tail.new()] == [1]
    path = tmp_path / "a.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole[:10], encoding="utf-8")
    assert tail.new() == []
    path.write_text(whole + whole, encoding="utf-8")
    assert [event["number"] for event in tail.new()] == [1]
    assert tail.new() == []


def test_half_a_line_of_a_killed_writer_is_no_event(tmp_path: Path) -> None:
    Journal(tmp_path, "a").append("x")
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "ev')
    assert len(read(tmp_path)) == 1
