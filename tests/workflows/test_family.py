import itertools
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from workflows.family import WAITING, Family, Member, as_it_came, holm, waiting
from workflows.models import ModelStore
from workflows.storage import Storage

STEPS = ("a.promote", "b.promote", "c.promote", "d.promote")


def family(storage: Storage) -> Family:
    return Family(storage, "runs/run/family", STEPS)


def member(p: float) -> Member:
    return Member(p, 0.05, {"version": p})


def test_holm_of_a_worked_example() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert holm({}) == {}


def test_who_is_not_judged_yet_counts_as_not_proved(storage: Storage) -> None:
    of = family(storage)
    of.join("a.promote", member(0.02))
    assert of.proved() == {}  # 0.08 of four
    of.join("b.promote", member(0.001))
    assert of.proved().keys() == {"b.promote"}  # then 0.06 of three
    of.join("c.promote", Member(1.0, 0.05, None))
    of.join("d.promote", member(0.01))
    assert of.proved().keys() == {"a.promote", "b.promote", "d.promote"}
    assert of.adjusted()["c.promote"] == 1.0


@pytest.mark.parametrize("order", itertools.permutations(STEPS))
def test_what_is_proved_stays_proved_and_the_end_knows_no_order(
    local: Storage, order: tuple[str, ...]
) -> None:
    found = random.Random(3)
    p_values = dict(zip(STEPS, (found.random() * 0.04 for _ in STEPS), strict=True))
    of, proved = family(local), set[str]()
    for step in order:
        of.join(step, member(p_values[step]))
        now = set(of.proved())
        assert proved <= now
        proved = now
    assert proved == {step for step, p in holm(p_values).items() if p <= 0.05}


def test_a_rule_that_asks_for_no_proof_is_heeded(storage: Storage) -> None:
    of = family(storage)
    of.join("a.promote", Member(0.9, 1.0, {}))
    assert of.proved() == {"a.promote": {}}


def test_a_model_that_waits_since_a_run_that_was_killed_is_proved_with_the_next(
    storage: Storage, tmp_path: Path
) -> None:
    store = ModelStore(storage)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    facts = {"fingerprint": "f", "attempt": "a", "task": {}, "scores": {}}
    version = store.add("tiny.tone", tmp_path / "model", **facts)  # type: ignore[arg-type]
    told = {"model": str(version), "reason": "better", WAITING: asdict(member(0.03))}
    others = {"model": str(version), "reason": "worse"}
    found = waiting(store, {"a.promote": told, "b.promote": others})
    assert found == {"a.promote": member(0.03)}
    assert WAITING not in as_it_came(store, told)

    of = Family(storage, "runs/next/family", ("c.promote", *found))
    of.join("a.promote", found["a.promote"])
    assert of.proved() == {}  # 0.06 of two
    of.join("c.promote", member(0.01))
    assert of.proved().keys() == {"a.promote", "c.promote"}

    store.promote(version, expected=None, reason="by hand", run=None)
    assert waiting(store, {"a.promote": told}) == {}
    assert as_it_came(store, told)["outcome"] == "promoted"
