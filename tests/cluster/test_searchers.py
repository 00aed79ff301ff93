"""What searchers and schedulers remember of earlier trials. No Ray runs here."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from toys import apart

from cluster import searchers, space
from cluster.config import SearchConfig, TrialConfig
from cluster.interface import SearchPlan, TrialResult
from cluster.results import EPOCH, SCORE
from cluster.space import Branches, Range

SPACE: dict[str, Any] = {
    "rate": Range(loguniform=(1e-4, 1e-1)),
    "method": Branches({"full": {"decay": [0.5, 0.9]}, "lora": {"rank": Range(randint=(1, 8))}}),
    "share": Range(quniform=(0.0, 1.0, 0.25)),
    "epochs": 4,
}
POINT = {"rate": 0.01, "method": "lora", "rank": 3, "share": 0.75, "epochs": 4}


def plan(trials: int, earlier: list[TrialResult], **changes: Any) -> SearchPlan:
    first = changes.pop("first", [])
    config = SearchConfig(trials=trials, space=SPACE, **changes)
    return SearchPlan(
        *(config, TrialConfig()),
        name="search",
        metric="accuracy",
        max_epochs=4,
        slots=lambda: 1,
        course=apart,
        earlier=earlier,
        first=first,
    )


def result(name: str, point: dict[str, Any], *scores: float, status: Any = "finished") -> Any:
    return TrialResult(name, point, status, [{"accuracy": score} for score in scores])


def suggested(of: SearchPlan, number: int) -> list[dict[str, Any]]:
    found: Any = searchers.searcher(of).searcher  # without the limit of trials at once
    return [found.suggest(str(n))["point"] for n in range(number)]


def test_a_space_takes_of_a_point_what_it_has() -> None:
    other = {**POINT, "rate": 0.5, "share": 0.7, "decay": 0.9, "seed": 3}
    assert space.taken(SPACE, other) == {"method": "lora", "method.lora.rank": 3, "share": 0.75}
    assert space.taken(SPACE, {"method": "head"}) == {}
    assert space.taken(SPACE, {"method": "full", "decay": 0.7}) == {"method": "full"}


def test_random_points_begin_with_those_asked_for_and_move_no_others() -> None:
    config = SearchConfig(trials=4, space=SPACE)
    plain, asked = config.points(), config.points([POINT])
    assert asked[0] == POINT
    assert asked[1:] == plain[1:]


def test_points_that_were_tried_are_not_tried_again() -> None:
    tried = SearchConfig(trials=3, space=SPACE).points()
    earlier = [result(str(n), point, 0.5) for n, point in enumerate(tried)]
    more = plan(5, earlier)
    assert more.trials == 2
    assert tried + more.points() == SearchConfig(trials=5, space=SPACE).points()
    assert plan(3, earlier).points() == []


def test_tpe_begins_with_those_asked_for() -> None:
    first, second = suggested(plan(4, [], searcher="tpe", first=[POINT, {"rate": 0.05}]), 2)
    assert first == POINT
    assert second["rate"] == 0.05
    assert 0.0 <= second["share"] <= 1.0


def test_tpe_draws_near_what_was_good_before() -> None:
    points = SearchConfig(trials=60, space=SPACE, seed=1).points()
    earlier = [result(str(n), point, -abs(point["share"] - 0.25)) for n, point in enumerate(points)]
    with_memory = suggested(plan(90, earlier, searcher="tpe"), 30)
    without = suggested(plan(30, [], searcher="tpe"), 30)

    def near(found: list[dict[str, Any]]) -> int:
        return sum(point["share"] == 0.25 for point in found)

    assert near(with_memory) > 2 * near(without)
    assert not any(point in points for point in with_memory)


def test_tpe_takes_failures_for_the_worst() -> None:
    failed = result("a", POINT, status="failed")
    study = searchers.searcher(plan(2, [failed], searcher="tpe")).searcher._ot_study
    (trial,) = study.trials
    assert trial.value == searchers.WORST_SCORE
    assert trial.params == {"rate": 0.01, "method": "lora", "method.lora.rank": 3, "share": 3}


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_asha_measures_by_the_rungs_of_earlier_trials(lower_is_better: bool) -> None:
    sign = -1 if lower_is_better else 1
    earlier = [result(str(n), POINT, sign * 0.8, sign * 0.9) for n in range(3)]
    known = dataclasses.replace(plan(9, earlier, scheduler="asha"), lower_is_better=lower_is_better)
    assert first_verdict(known, 0.5) == "STOP"
    assert first_verdict(known, 0.85) == "CONTINUE"
    assert first_verdict(plan(9, [], scheduler="asha"), 0.5) == "CONTINUE"


def test_median_rule_measures_by_earlier_trials() -> None:
    earlier = [result(str(n), POINT, 0.8, 0.9, 0.9, 0.9) for n in range(3)]
    assert first_verdict(plan(9, earlier, scheduler="median"), 0.5) == "STOP"
    assert first_verdict(plan(9, [], scheduler="median"), 0.5) == "CONTINUE"


def test_median_rule_counts_an_epoch_that_is_told_again_once() -> None:
    rule: Any = searchers.scheduler(plan(9, [], scheduler="median"))
    nobody_else: Any = SimpleNamespace(get_live_trials=list)
    trial = searchers._Seen("a")
    rule.on_trial_add(nobody_else, trial)
    for epoch in (1, 2, 1, 2, 3):
        rule.on_trial_result(nobody_else, trial, {EPOCH: epoch, SCORE: 0.5})
    assert [result[EPOCH] for result in rule._results[trial]] == [1, 2, 3]


def first_verdict(of: SearchPlan, score: float) -> str:
    scheduler, trial = searchers.scheduler(of), searchers._Seen("new")
    nobody_else: Any = SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(nobody_else, trial)
    return str(scheduler.on_trial_result(nobody_else, trial, {EPOCH: 1, SCORE: score}))


def test_explorer_stays_in_the_space_and_changes_what_may_change() -> None:
    explore = searchers._Explorer(SPACE, ["rate", "rank", "share", "epochs"], seed=0)
    found = [explore({"point": POINT})["point"] for _ in range(200)]
    assert {tuple(point) for point in found} == {tuple(POINT)}
    assert all(point["method"] == "lora" and point["epochs"] == 4 for point in found)
    assert all(1e-4 <= point["rate"] <= 1e-1 and 1 <= point["rank"] <= 8 for point in found)
    assert {point["share"] for point in found} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    near = sum(point["rate"] in {0.01 * 0.8, 0.01 * 1.25} for point in found)
    assert 120 < near < 180
    assert len({point["share"] for point in found}) > 1
    fixed = searchers._Explorer(SPACE, [], seed=0)
    assert fixed({"point": POINT}) == {"point": POINT}


def test_lists_are_changed_to_their_neighbours_or_drawn_anew() -> None:
    explore = searchers._Explorer({"decay": [1, 2, 3, 4, 5]}, ["decay"], seed=0)
    found = [explore({"point": {"decay": 1}})["point"]["decay"] for _ in range(200)]
    assert set(found) == {1, 2, 3, 4, 5}
    assert found.count(1) + found.count(2) > 140


def test_time_waits_for_the_least_and_for_no_more_when_all_fail() -> None:
    ended = result("a", POINT, 0.5)
    config = SearchConfig(max_hours=1e-9, least_trials=3, space=SPACE)
    plan_with_time = SearchPlan(
        *(config, TrialConfig()),
        name="search",
        metric="accuracy",
        max_epochs=4,
        slots=lambda: 1,
        course=apart,
        earlier=[ended],
    )
    stopper: Any = searchers.stopper(plan_with_time)
    stopper.stop_all()
    said = []
    for outcome in (
        {"finished": False, "error": "ValueError: no"},
        {"finished": True, "error": None},
        {"finished": True, "error": None},
    ):
        stopper("b", outcome)
        said.append(stopper.stop_all())
    assert said == [False, False, True]

    waiting: Any = searchers.stopper(dataclasses.replace(plan_with_time, earlier=[]))
    waiting.stop_all()
    for _ in range(9):
        waiting("b", {"finished": False, "error": "ValueError: no"})
    assert not waiting.stop_all()
    waiting("b", {"finished": False, "error": "ValueError: no"})
    assert waiting.stop_all()
    assert searchers.stopper(plan(3, [])) is None


class Trials:
    """A search as Tune drives it, whose clock is set by the test."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(searchers.time, "monotonic", lambda: self.now)
        self.searcher: Any = searchers.searcher(plan(number, [], searcher="tpe"))
        self.names = iter(range(number))

    def begin(self) -> str | None:
        name = str(next(self.names))
        found = self.searcher.suggest(name)
        return name if isinstance(found, dict) else None

    def end(self, name: str, *, after_s: float, trained_s: float) -> None:
        """A trial of one epoch, whose slot needed the rest of the time to start."""
        self.now += after_s
        times = {searchers.TIME_THIS_ITER_S: trained_s, searchers.TIME_TOTAL_S: trained_s}
        of_epoch = {EPOCH: 1, SCORE: 0.5, **times}
        self.searcher.on_trial_result(name, of_epoch)
        self.searcher.on_trial_complete(name, of_epoch)


@pytest.mark.parametrize(("trials", "opens"), [(14, True), (13, False)])
def test_a_further_slot_is_opened_where_it_is_ready_before_the_last_trial_begins(
    monkeypatch: pytest.MonkeyPatch, trials: int, opens: bool
) -> None:
    room = [1]
    token = searchers.slots.set(lambda: room[0])
    of = Trials(trials, monkeypatch)
    first = of.begin()
    assert first is not None
    assert of.begin() is None  # one slot
    of.end(first, after_s=6.0, trained_s=0.5)  # 5.5 s to start
    second = of.begin()
    assert second is not None
    room[0] = 2
    assert (of.begin() is not None) is opens  # of the others, half a second each
    searchers.slots.reset(token)


def test_a_search_that_goes_on_knows_nothing_of_slots_that_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = searchers.slots.set(lambda: 2)
    of = Trials(9, monkeypatch)
    first, second = of.begin(), of.begin()
    assert first is not None
    assert second is not None
    of.end(first, after_s=6.0, trained_s=0.5)
    after = Trials(9, monkeypatch)
    after.searcher.set_state(of.searcher.get_state())
    after.now = 1e6
    third = after.begin()  # the second is under way still, in a slot that Tune opened for it
    assert third is not None
    after.end(third, after_s=1.0, trained_s=0.5)
    assert after.searcher._start_s == pytest.approx(5.5)
    assert not after.searcher._opened_at
    searchers.slots.reset(token)
