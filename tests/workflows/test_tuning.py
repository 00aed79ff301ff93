"""Which finished search a longer one goes on from."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from workflows import outside
from workflows.artifacts import Artifacts
from workflows.config import ConfigError, load_config
from workflows.pipeline import build_steps
from workflows.planning import plan
from workflows.steps import Step
from workflows.storage import Storage
from workflows.tuning import ended, longest


@pytest.fixture
def folder(tmp_path: Path, pipeline: dict[str, Any]) -> Path:
    write_pipeline(tmp_path, pipeline)
    return tmp_path


def tune(folder: Path, *overrides: str) -> Step:
    config = load_config(folder / "pipeline.yaml", overrides)
    steps = build_steps(config, outside.inspect(config, folder))
    return next(step for step in steps if step.name == "tone.tune")


def search(**changes: Any) -> list[str]:
    return [f"tasks.tone.search.{name}={value}" for name, value in changes.items()]


def finish(artifacts: Artifacts, step: Step, trials: int, **facts: int) -> None:
    known = artifacts.ledger.positions([step])[step.fingerprint]
    attempt = artifacts.begin(step, known, "run", 60.0)
    assert attempt is not None
    (attempt.output / "trials.json").write_text("[]", encoding="utf-8")
    assert artifacts.commit(step, attempt, {"trials": trials, **facts}, run="run")


def test_the_longest_that_differs_in_its_budget_alone(folder: Path, storage: Storage) -> None:
    artifacts = Artifacts(storage)
    for trials in (2, 4, 9):
        finish(artifacts, tune(folder, *search(trials=trials)), trials)
    finish(artifacts, tune(folder, *search(trials=5, max_hours=1)), 5)
    wanted = tune(folder, *search(trials=8, max_hours=2))
    for most, expected in ((8, 5), (4, 4), (3, 2), (1, None), (None, 9)):
        found = longest(artifacts, wanted, most)
        assert (found.facts["trials"] if found else None) == expected


@pytest.mark.parametrize(
    "changes",
    [
        search(seed=1),
        search(scheduler="none"),
        search(searcher="tpe"),
        search(**{"space.epochs": 3}),
        ["tasks.tone.max_length=32"],
        ["pretrain.seed=1"],
        ["tasks.tone.data.split.seed=1"],
    ],
    ids=lambda changes: changes[0],
)
def test_another_search_is_not_gone_on_from(
    folder: Path, local: Storage, changes: list[str]
) -> None:
    artifacts = Artifacts(local)
    finish(artifacts, tune(folder, *changes), 2)
    assert longest(artifacts, tune(folder, *search(trials=8))) is None


def test_trials_that_time_cut_off_do_not_count(folder: Path, local: Storage) -> None:
    artifacts = Artifacts(local)
    finish(artifacts, tune(folder, *search(trials=8, max_hours=1)), 8, cut=5)
    finish(artifacts, tune(folder, *search(trials=4)), 4)
    found = longest(artifacts, tune(folder, *search(trials=8, max_hours=2)), 8)
    assert found is not None
    assert (found.facts["trials"], ended(found)) == (4, 4)
    found = longest(artifacts, tune(folder, *search(trials=8, max_hours=2)), 3)
    assert found is not None
    assert ended(found) == 3


def test_a_search_is_the_same_whatever_it_began_with(folder: Path, local: Storage) -> None:
    artifacts = Artifacts(local)
    finish(artifacts, tune(folder, *search(warm_start="[places]")), 2)
    other = "tasks.places.search.trials=9"
    found = longest(artifacts, tune(folder, *search(warm_start="[places]", trials=8), other))
    assert found is not None


def test_damaged_records_of_others_do_no_harm(folder: Path, local: Storage) -> None:
    artifacts = Artifacts(local)
    finish(artifacts, tune(folder), 2)
    broken = tune(folder, *search(trials=3))
    finish(artifacts, broken, 3)
    for name in local.names("ledger/tune"):
        if name.startswith(broken.fingerprint[:32]):
            local.write(f"ledger/tune/{name}", b"{")
    found = longest(artifacts, tune(folder, *search(trials=8)))
    assert found is not None
    assert found.facts["trials"] == 2


def test_search_that_begins_with_others_winners_waits_for_them(folder: Path) -> None:
    config = load_config(folder / "pipeline.yaml", search(warm_start="[places]"))
    steps = build_steps(config, outside.inspect(config, folder))
    names = [step.name for step in steps]
    assert names.index("places.tune") < names.index("tone.tune")
    found = next(step for step in steps if step.name == "tone.tune")
    assert found.inputs["warm_start.places"].name == "places.tune"
    assert json.dumps(list(plan(steps, Artifacts(Storage.at(folder / "s")).ledger, None).states))


def steps_of(folder: Path, *changes: str, probes: bool = False) -> dict[str, Step]:
    config = load_config(folder / "pipeline.yaml", list(changes))
    steps = build_steps(config, outside.inspect(config, folder), probes=probes)
    return {step.name: step for step in steps}


def test_features_are_computed_where_a_head_may_be_tried(folder: Path) -> None:
    plain = steps_of(folder)
    assert not any(step.kind in ("features", "probe") for step in plain.values())
    heads = search(**{"space.method": "[full, head]"})
    found = steps_of(folder, *heads)
    assert [name for name, step in found.items() if step.kind == "features"] == ["tone.features"]
    assert found["tone.tune"].inputs["features"].name == "tone.features"
    assert "features" not in found["tone.final"].inputs
    # They are the same whatever is made of them.
    other = steps_of(folder, *heads, "tasks.tone.metric=macro_f1", "tasks.tone.search.seed=3")
    assert other["tone.features"].fingerprint == found["tone.features"].fingerprint
    longer = steps_of(folder, *heads, "tasks.tone.max_length=40")
    assert longer["tone.features"].fingerprint != found["tone.features"].fingerprint


def test_a_look_at_each_task_is_no_part_of_a_run(folder: Path) -> None:
    plain, looking = steps_of(folder), steps_of(folder, probes=True)
    assert looking.keys() - plain.keys() == {"tone.probe", "places.probe"}
    assert all(looking[name].fingerprint == plain[name].fingerprint for name in plain)


def test_a_share_of_labels_is_trained_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match="a share stands there twice"):
        tune(folder, "tasks.tone.controls.label_fractions=[0.1, 0.5, 0.1]")


PBT = search(scheduler="pbt", trials=4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (search(warm_start="[place]"), "no task 'place'; did you mean 'places'?"),
        (search(warm_start="[tone]"), "tone.tune -> tone.tune: these steps wait for each other"),
        (
            [*search(searcher="grid", warm_start="[places]"), "tasks.tone.search.trials=2"],
            "warm_start goes with searcher: random or tpe",
        ),
        (search(scheduler="pbt"), "scheduler pbt compares: set trials to 4 at least"),
        ([*PBT, *search(perturb_epochs=2)], "would compare nothing in 2 epochs"),
        (
            [*PBT, "budget={trials: 5}"],
            "leave 3 trials to tasks.tone.search",
        ),
        ([*PBT, *search(searcher="tpe")], "scheduler pbt changes points on its way"),
        ([*PBT, *search(**{"space.epochs": "[2, 3]"})], "pbt needs one value for all trials"),
        ([*PBT, *search(**{"space.learning_rate": 0.01})], "give learning_rate, dropout,"),
        (search(perturb_epochs=2), "perturb_epochs goes with scheduler: pbt"),
        (search(**{"space.decay": 0.3}), "decay goes with schedule: wsd; the search tries linear"),
    ],
)
def test_searches_that_cannot_be_run_are_refused(
    folder: Path, changes: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(folder, *changes)
    assert expected in str(caught.value)


def test_a_budget_of_all_is_part_of_what_each_search_is(folder: Path) -> None:
    found = tune(folder, "budget={trials: 3, max_hours: 2}").spec.search
    assert (found.trials, found.max_hours, found.least_trials) == (2, 2.0, 1)
    with pytest.raises(ConfigError, match=r"at least 2 trials each need 4; raise budget\.trials"):
        tune(folder, "budget={trials: 3, floor: 2}")
