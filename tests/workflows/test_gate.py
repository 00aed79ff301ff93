"""The gate on what models said, without training any."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainers import predictions
from trainers.task_config import TaskConfig
from trainers.task_types.base import Prediction
from workflows import gate, judgement
from workflows.cli import app
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.promote_config import PromoteConfig
from workflows.promotion import Keep, Promote
from workflows.storage import Storage

NAME = "tiny.tone"
LABELS = ("bad", "good")
ROWS = 200
TASK = TaskConfig.model_validate(
    {
        "type": "classification",
        "metric": "accuracy",
        "data": {"path": "tone.csv", "split": {"test": 0.2, "validation": 0.2}},
    }
)
TRUTH = [random.Random(row).choice(LABELS) for row in range(ROWS)]


def said(right: int, labels: Sequence[str] = LABELS) -> list[Prediction]:
    """Answers of which the first so many are right."""
    wrong = dict(zip(LABELS, reversed(LABELS), strict=True))
    found = []
    for row, label in enumerate(TRUTH):
        name = label if row < right else wrong[label]
        probabilities = [float(one == name) for one in labels]
        found.append(Prediction(name, 1.0, probabilities))
    return found


def write_model(
    folder: Path, right: int, *, scratch: int | None = None, labels: Sequence[str] = LABELS
) -> Path:
    """A model's folder with so many right answers, beside a constant answer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = {str(number): label for number, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps({"id2label": names}))
    predictions.write(folder / predictions.FILE, TRUTH, said(right, labels))
    constant = [Prediction("good", 1.0, [0.0, 1.0])] * ROWS
    predictions.write(folder / predictions.CONSTANT, TRUTH, constant)
    if scratch is not None:
        predictions.write(folder / predictions.SCRATCH, TRUTH, said(scratch))
    return folder


class World:
    """A store on this machine, and models that are right on so many of 200 rows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "storage"
        self.store = ModelStore(Storage.at(self.root))

    def add(
        self,
        right: int,
        *,
        split: str = "rows",
        rule: PromoteConfig | None = None,
        found: dict[str, Any] | None = None,
        **other: Any,
    ) -> Version:
        source = write_model(self.folder / "model", right, **other)
        return self.store.add(
            NAME,
            source,
            fingerprint="f",
            attempt=f"{right}{split}{other}",
            task=TASK.model_dump(mode="json"),
            scores={"accuracy": right / ROWS},
            more={
                "test_split": split,
                "promote": (rule or PromoteConfig()).model_dump(mode="json"),
                "judgement": {
                    "reason": "",
                    "score": right / ROWS,
                    "compared": {},
                    "guards": found or {},
                },
            },
        )

    def promote(self, version: Version) -> None:
        expected = self.store.champion(NAME)
        self.store.promote(version, expected=expected, reason="for the test", run="run")

    def judge(self, version: Version, ask: judgement.Ask | None = None) -> judgement.Judgement:
        tested = judgement.Tested.of_version(self.store, version)
        return judgement.judge(self.store, self.store.champion(NAME), tested, ask)

    def cli(self, *arguments: str) -> tuple[int, str]:
        answer = CliRunner().invoke(app, ["models", *arguments, "--storage", str(self.root)])
        return answer.exit_code, answer.output


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_first_model_is_compared_with_a_constant_and_with_random_weights(world: World) -> None:
    found = world.judge(world.add(190, scratch=150))
    assert isinstance(found.verdict, Promote)
    assert found.facts["compared"].keys() == {"constant", "scratch"}
    scratch = found.facts["compared"]["scratch"]
    assert (scratch["score"], scratch["value"], scratch["rows"]) == (0.75, pytest.approx(0.2), ROWS)
    assert scratch["low"] < scratch["value"] < scratch["high"]
    assert scratch["p"] < 0.001
    assert isinstance(world.judge(world.add(120, scratch=150)).verdict, Keep)
    assert isinstance(world.judge(world.add(149, scratch=150)).verdict, Promote)  # by luck, perhaps


@pytest.mark.parametrize(
    ("right", "rule", "expected"),
    [
        (180, {}, Promote),
        (151, {}, Keep),  # one row more is luck
        (151, {"confidence": 0.0}, Promote),
        (151, {"test": "mcnemar"}, Keep),
        (180, {"test": "mcnemar"}, Promote),
        (180, {"test": "randomization"}, Promote),
        (150, {"test": "randomization"}, Keep),
        (180, {"min_improvement": 0.2}, Keep),
        (149, {"mode": "non_inferior", "margin": 0.05}, Promote),
        (149, {"mode": "non_inferior", "margin": 0.001}, Keep),
    ],
)
def test_a_challenger_is_compared_with_what_the_champion_said(
    world: World, right: int, rule: dict[str, Any], expected: type
) -> None:
    world.promote(world.add(150))
    challenger = world.add(right, scratch=199, rule=PromoteConfig.model_validate(rule))
    found = world.judge(challenger)
    assert isinstance(found.verdict, expected), found.verdict.reason
    assert found.facts["compared"]["champion"]["model"] == "tiny.tone@1"
    assert "scratch" not in found.facts["compared"]


def test_a_champion_that_was_tested_on_other_rows_is_asked_again_or_not_compared(
    world: World,
) -> None:
    champion = world.add(150, split="other rows")
    world.promote(champion)
    challenger = world.add(180)
    asked = []

    def ask(version: Version, task: TaskConfig) -> list[Prediction]:
        asked.append(version)
        assert task.metric == "accuracy"
        return said(190)

    assert isinstance(world.judge(challenger, ask).verdict, Keep)
    assert asked == [champion]
    assert "tested on other rows" in world.judge(challenger).verdict.reason


def test_a_champion_with_other_labels_is_not_asked(world: World) -> None:
    world.promote(world.add(150, labels=("bad", "fine", "good")))
    found = world.judge(world.add(180), ask=lambda *_: pytest.fail("asked"))
    assert "knows other labels: bad, fine, good" in found.verdict.reason


def test_promotion_by_hand_goes_through_the_same_gate(world: World) -> None:
    world.promote(world.add(150))
    weak, strong = world.add(151), world.add(180)
    code, told = world.cli("promote", str(weak))
    assert code == 1
    assert "not promoted" in told
    assert "luck" in told
    assert world.cli("promote", str(strong))[0] == 0
    assert world.store.champion(NAME) == strong
    assert world.store.log(NAME)[-1]["how"] == "gate"
    assert world.cli("promote", str(strong))[0] == 2


def test_the_gate_can_be_overridden_for_a_reason_that_is_kept(world: World) -> None:
    first, weak = world.add(150), world.add(149)
    world.promote(first)
    assert world.cli("promote", str(weak), "--override")[0] == 2
    assert world.cli("promote", str(weak), "--override", "--because", "a quarter as large")[0] == 0
    entry = world.store.log(NAME)[-1]
    assert (entry["version"], entry["how"], entry["run"]) == (2, "override", None)
    assert entry["reason"] == "a quarter as large"


def test_rollback_and_its_refusals(world: World) -> None:
    first, second = world.add(150), world.add(180)
    world.promote(first)
    assert world.cli("rollback", NAME, "--because", "no reason")[0] != 0
    world.promote(second)
    assert world.cli("rollback", NAME)[0] == 2  # without a reason
    assert world.cli("rollback", NAME, "--because", "wrong on irony")[0] == 0
    assert world.store.champion(NAME) == first
    file = world.root / world.store.files(second) / "config.json"
    file.write_text("{}")
    assert world.cli("rollback", NAME, "--to", "2", "--because", "again")[0] != 0
    assert world.store.champion(NAME) == first


def test_verify_finds_what_is_damaged(world: World) -> None:
    first, second = world.add(150), world.add(180)
    assert world.cli("verify")[0] == 0
    (world.root / world.store.files(second) / "config.json").write_text("{}")
    code, told = world.cli("verify", "--json")
    assert code == 1
    rows = {row["model"]: row["damage"] for row in json.loads(told)}
    assert rows[str(first)] is None
    assert "config.json has other bytes" in rows[str(second)]
    world.promote(first)
    (world.root / f"models/{NAME}/log/000001.json").write_text("{}")
    code, told = world.cli("verify", NAME, "--json")
    assert code == 1
    assert json.loads(told)[-1]["model"] == NAME


def test_versions_are_compared_tagged_and_pulled(world: World, tmp_path: Path) -> None:
    first, second = world.add(150), world.add(180)
    code, told = world.cli("diff", str(first), str(second), "--json")
    assert code == 0
    changed = {row["what"]: (row[str(first)], row[str(second)]) for row in json.loads(told)}
    assert changed["scores.accuracy"] == (0.75, 0.9)
    assert "files.predictions.parquet" in changed
    assert "files.config.json" not in changed
    assert world.cli("tag", str(first), "reviewed=yes")[0] == 0
    assert world.store.tags(first) == {"reviewed": "yes"}
    assert world.cli("tag", str(first), "reviewed")[0] == 2
    assert world.cli("pull", str(second), str(tmp_path / "here"))[0] == 0
    assert (tmp_path / "here" / "MANIFEST.json").is_file()


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        ("good", Prediction("bad", 0.7, [0.7, 0.3])),
        ([], Prediction(["a"], [0.9], [0.9, 0.1])),
        ([], Prediction([], [], [0.2, 0.1])),
        (0.5, Prediction(0.25, None)),
        (["O", "B-x"], Prediction(["O", "O"], [0.5, 0.75])),
        ({"answers": ["a", "b"], "start": 3}, Prediction("a", None)),
        ("text", Prediction("other text", None, loss=1.5)),
    ],
)
def test_predictions_are_read_as_they_were_written(
    tmp_path: Path, truth: Any, found: Prediction
) -> None:
    path = tmp_path / "predictions.parquet"
    predictions.write(path, [truth, truth], [found, found])
    assert predictions.read(path.read_bytes()) == ([truth, truth], [found, found])


def test_a_step_that_was_killed_behind_its_promotion_tells_the_same_again(world: World) -> None:
    version = world.add(180)
    world.promote(version)
    moved = world.store.moved(version)
    assert moved is not None
    told = gate.decided_before(world.store, version, moved)
    assert told["promoted"] is True
    assert (told["model"], told["champion"]) == (str(version), str(version))
    assert (told["reason"], told["outcome"]) == ("for the test", "promoted")


def test_a_candidate_is_approved_without_being_judged_again(world: World) -> None:
    world.promote(world.add(150, split="other rows"))
    second, first = world.add(180), world.store.champion(NAME)
    world.store.promote(second, expected=first, reason="proved", run="run", alias="candidate")
    assert world.cli("promote", f"{NAME}@candidate")[0] == 0
    entry = world.store.log(NAME)[-1]
    assert (entry["alias"], entry["how"], entry["reason"]) == ("champion", "approval", "proved")


def test_a_candidate_that_was_compared_with_another_champion_is_judged_again(world: World) -> None:
    first = world.add(150)
    world.promote(first)
    second, third = world.add(180), world.add(190)
    world.store.promote(second, expected=first, reason="proved", run="run", alias="candidate")
    world.promote(third)
    assert world.cli("promote", str(second))[0] == 1
    assert world.store.champion(NAME) == third


def test_what_no_run_has_tested_is_not_judged(world: World, tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    (source / "config.json").write_text("{}")
    version = world.store.add(NAME, source, fingerprint="f", attempt="a", task={}, scores={})
    with pytest.raises(ModelStoreError, match="tested by no run"):
        world.judge(version)
    assert world.cli("promote", str(version), "--override", "--because", "[try] it")[0] == 0
    assert world.cli("list")[0] == 0
    found = world.judge(world.add(180))
    assert "of another task: unknown" in found.verdict.reason


def test_a_better_model_that_does_not_keep_to_a_guard_is_kept_back(world: World) -> None:
    world.promote(world.add(150))
    rule = PromoteConfig.model_validate({"guards": {"size_mb": 10}})
    small = world.judge(world.add(190, rule=rule, found={"size_mb": 9.0}))
    assert isinstance(small.verdict, Promote)
    assert small.facts["guards"] == {"size_mb": 9.0}
    version = world.add(191, rule=rule, found={"size_mb": 11.0})
    large = world.judge(version)
    assert isinstance(large.verdict, Keep)
    assert large.verdict.reason.endswith("; but size in MB is 11, above 10")
    code, told = world.cli("promote", str(version))
    assert code == 1
    assert "size in MB is 11, above 10" in told
