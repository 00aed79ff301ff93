import io
import time

from rich.console import Console

from workflows.journal import Journal, Tail
from workflows.progress import LiveView, RunView, clock, detail
from workflows.storage import Storage


def view_of(*events: dict[str, object]) -> RunView:
    view = RunView(["pretrain", "tone.tune"])
    for number, event in enumerate(events):
        view.take({"time": float(number), **event})
    return view


def test_step_goes_through_its_states() -> None:
    view = view_of(
        {"event": "step", "step": "pretrain", "state": "running"},
        {
            "event": "progress",
            "step": "pretrain",
            "optimizer_step": 3,
            "total_steps": 20,
            "loss": 2.5,
            "tokens_per_s": 1234.5,
        },
    )
    assert detail(view.steps["pretrain"]) == "step 3/20, loss 2.500, 1,234 tokens/s"
    view.take(
        {"time": 62.0, "event": "step", "step": "pretrain", "state": "done", "facts": {"a": 1}}
    )
    assert view.steps["pretrain"].elapsed_s == 62.0
    assert detail(view.steps["pretrain"]) == "a 1"


def test_failure_is_told_by_its_cause() -> None:
    view = view_of({"event": "step", "step": "pretrain", "state": "failed", "cause": "no space"})
    assert detail(view.steps["pretrain"]) == "no space"


def test_a_verdict_is_told_and_facts_of_others_are_not_taken_for_one() -> None:
    verdict = {"model": "t.tone@2", "outcome": "promoted", "reason": "better", "score": 0.5}
    own = {"model": "mine", "reason": "I like it", "rows": 12}  # of a step of the user's own
    for facts, told in ((verdict, "t.tone@2 promoted: better"), (own, "rows 12")):
        view = view_of({"event": "step", "step": "pretrain", "state": "done", "facts": facts})
        assert detail(view.steps["pretrain"]) == told


def test_search_is_told_by_its_trials() -> None:
    view = view_of(
        {"event": "step", "step": "tone.tune", "state": "running"},
        {"event": "trial", "step": "tone.tune", "trial": "a", "epoch": 2},
        {"event": "trial", "step": "tone.tune", "trial": "b", "epoch": 1},
    )
    assert detail(view.steps["tone.tune"]) == "2 trials begun, 3 epochs"


def test_search_tells_the_best_so_far() -> None:
    search = {"event": "search", "step": "tone.tune", "metric": "mse", "lower_is_better": True}
    trials = [(1, 0.5), (2, float("nan")), (3, 0.25), (4, 0.75)]
    view = view_of(
        {"event": "step", "step": "tone.tune", "state": "running"},
        {**search, "trials": 8},
        *(
            {"event": "trial", "step": "tone.tune", "trial": f"t{number}", "epoch": 1, "mse": mse}
            for number, mse in trials
        ),
    )
    assert detail(view.steps["tone.tune"]) == "4/8 trials begun, best mse 0.25, 4 epochs"


def test_training_tells_how_long_it_still_takes_and_when_it_was_saved() -> None:
    now = time.time()
    view = RunView(["pretrain"])

    def take(at: float, step: int, **more: float) -> str:
        event = {"event": "progress", "step": "pretrain", "optimizer_step": step, "loss": 2.0}
        view.take({"time": at, **event, "total_steps": 100, **more})
        return detail(view.steps["pretrain"])

    view.take({"time": now - 300, "event": "step", "step": "pretrain", "state": "running"})
    assert take(now - 100, 10) == "step 10/100, loss 2.000"
    assert take(now - 75, 20, saved_step=20) == "step 20/100, 3:20 left, loss 2.000, saved 1:15 ago"
    told = take(now - 50, 30, saved_step=20, model_flops_utilisation=0.4)
    assert told == "step 30/100, 2:55 left, loss 2.000, MFU 40%, saved 1:15 ago"
    # A lost worker: begun again from the checkpoint, slower, and nothing saved since.
    assert take(now - 20, 21) == "step 21/100, loss 2.000, saved 1:15 ago"
    told = take(now, 23)
    assert told == "step 23/100, 12:50 left, loss 2.000, saved 1:15 ago"


def test_notes_are_told_as_they_come(local: Storage) -> None:
    for is_terminal in (False, True):
        file = io.StringIO()
        journal, folder = Journal(local, f"events{is_terminal}", "run"), f"events{is_terminal}"
        console = Console(file=file, width=80, force_terminal=is_terminal, no_color=True)
        with LiveView(console, Tail(local, folder), ["pretrain"]):
            journal.append("note", step="pretrain", text="out of memory: smaller micro-batches")
            journal.flush()
        assert "pretrain: out of memory: smaller micro-batches" in file.getvalue()


def test_table_fits_80_columns_and_names_every_step() -> None:
    file = io.StringIO()
    view = view_of(
        {"event": "step", "step": "pretrain", "state": "failed", "cause": "x" * 200},
    )
    Console(file=file, width=80, no_color=True).print(view.table())
    lines = file.getvalue().splitlines()
    assert {len(line) for line in lines} == {80}
    assert [line.split()[:3] for line in lines if "pretrain" in line] == [
        ["x", "pretrain", "failed"]
    ]
    assert any(line.startswith(".  tone.tune") for line in lines)


def test_in_a_pipe_each_change_is_one_plain_line(local: Storage) -> None:
    file = io.StringIO()
    journal = Journal(local, "events", "run")
    with LiveView(Console(file=file, width=80), Tail(local, "events"), ["pretrain"]):
        journal.append("step", step="pretrain", state="waiting")
        journal.append("step", step="pretrain", state="running")
        journal.append("step", step="pretrain", state="done", facts={"tokens": 5})
    lines = file.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "pretrain: running",
        "pretrain: done tokens 5",
    ]


def test_clock_counts_minutes() -> None:
    assert [clock(None), clock(5), clock(125.9)] == ["", "0:05", "2:05"]
    assert clock(2 * 3600 + 5 * 60 + 1) == "2 h 05"


def test_in_a_terminal_the_table_is_redrawn(local: Storage) -> None:
    file = io.StringIO()
    journal = Journal(local, "events", "run")
    console = Console(file=file, width=80, force_terminal=True)
    with LiveView(console, Tail(local, "events"), ["pretrain", "report"]) as live:
        journal.append("step", step="pretrain", state="running")
        live.tick()
        journal.append("step", step="pretrain", state="failed", cause="no space")
    last = file.getvalue().rsplit("report", 1)[0]
    assert "failed" in last
    assert "no space" in last


def test_events_of_an_object_store_are_listed_now_and_then_and_all_at_the_end(
    remote: Storage,
) -> None:
    file = io.StringIO()
    journal, tail = Journal(remote, "events", "run"), Tail(remote, "events")
    with LiveView(Console(file=file, width=80), tail, ["pretrain"], every_s=3600) as live:
        live.tick()
        journal.append("step", step="pretrain", state="running")
        journal.flush()
        live.tick()
        assert "pretrain: running" not in file.getvalue()
    assert "pretrain: running" in file.getvalue()
