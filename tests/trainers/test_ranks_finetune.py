"""Fine-tuning with DeepSpeed on two ranks gives what it gives in one process."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_answers import prepared as prepared_answers
from test_answers import replies, task_of
from test_finetune import make_task
from test_ranks import start_ranks
from tuning_world import Found, Request, on_ranks, run
from worlds import trained_base

from trainers import retraining, task_data
from trainers.deadline import HUNG
from trainers.task_config import TaskConfig
from trainers.task_inputs import TrialExecution

pytestmark = pytest.mark.slow

ONE = TrialExecution(threads=1, use_gpu=False)
SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "dropout": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskConfig, Path]:
    return make_task(tmp_path_factory.mktemp("tone"), "classification")


def request(task: TaskConfig, base: Path, data: Path, **changes: Any) -> Request:
    return Request(task, base, data, {**SETTINGS, **changes}, ONE)


def run_ranks(requests: Sequence[Request], folder: Path, number: int = 2) -> list[Found]:
    """What rank 0 found."""
    folder.mkdir(exist_ok=True)
    asked, answered = folder / "requests.pkl", folder / "found.pkl"
    asked.write_bytes(pickle.dumps(list(requests)))
    ranks, logs = start_ranks("tuning_world.py", [asked, answered], folder, number)
    codes = [process.wait(timeout=400) for process in ranks]
    said = "\n".join(log.read_text(errors="replace")[-5000:] for log in logs)
    assert codes == [0] * number, said
    found: list[Found] = pickle.loads(answered.read_bytes())
    return found


def assert_same(one: Found, other: Found, case: Any) -> None:
    assert one.scores[0]["loss"] == pytest.approx(other.scores[0]["loss"], abs=1e-4), case
    assert one.scores[-1].keys() == other.scores[-1].keys()
    assert one.weights.keys() == other.weights.keys(), case
    for name, weight in one.weights.items():
        # In the mean: where a gradient is nearly nothing, AdamW makes much of its last digits.
        assert (weight - other.weights[name]).abs().mean() < 2e-6, (case, name)


def test_every_stage_and_method_gives_the_weights_of_one_process(
    base: Path, tone: tuple[TaskConfig, Path], tmp_path: Path
) -> None:
    task, data = tone
    cases = [
        *(({}, stage) for stage in (0, 1, 2, 3)),
        ({"layer_decay": 0.8, "frozen_layers": 1, "label_smoothing": 0.1}, 3),
        ({"token_dropout": 0.2}, 2),
        ({"method": "lora"}, 2),
        ({"method": "lora"}, 3),
        ({"method": "head"}, 3),
    ]
    requests = [request(task, base, data, **changes) for changes, _ in cases]
    sharded = [on_ranks(one, stage) for one, (_, stage) in zip(requests, cases, strict=True)]
    found = run_ranks(sharded, tmp_path / "ranks")
    for case, one, of_ranks in zip(cases, requests, found, strict=True):
        assert_same(run(one), of_ranks, case)


def test_words_and_answers_weigh_by_their_number_on_ranks(base: Path, tmp_path: Path) -> None:
    for name in ("words", "written"):
        (tmp_path / name).mkdir()
    words, of_words = make_task(tmp_path / "words", "token_classification")
    written = task_of("generation", "loss")
    of_written = prepared_answers(tmp_path / "written", written, replies(60))
    # 7 rows a batch: ranks have different numbers of them, and the last batch has fewer.
    requests = [
        request(words, base, of_words, batch_size=7),
        request(written, base, of_written, batch_size=7),
    ]
    halved = [replace(on_ranks(one, 3), halvings=1) for one in requests]
    found = run_ranks(halved, tmp_path / "ranks")
    for one, of_ranks in zip(requests, found, strict=True):
        alone = run(one)
        assert_same(alone, of_ranks, one.task.type)
        assert of_ranks.scores[-1] == pytest.approx(alone.scores[-1], abs=1e-3)


def test_what_ranks_save_is_gone_on_from_and_what_they_export_is_whole(
    base: Path, tone: tuple[TaskConfig, Path], tmp_path: Path
) -> None:
    task, data = tone
    cases = [("lora", 3), ("head", 3), ("head", 2), ("head", 0)]
    requests, folders = [], [tmp_path / f"{method}{stage}" for method, stage in cases]
    for folder, (method, stage) in zip(folders, cases, strict=True):
        (folder / "saved").mkdir(parents=True)
        one = on_ranks(request(task, base, data, method=method, dropout=0.1), stage)
        resumed = replace(one, resumes_in=folder / "saved", output=folder / "model")
        requests += [one, resumed]
    found = run_ranks(requests, tmp_path / "ranks")
    rows = task_data.load(data, task_data.VALIDATION)
    for folder, whole, gone_on in zip(folders, found[::2], found[1::2], strict=True):
        assert gone_on.scores == whole.scores, folder.name
        for name, weight in whole.weights.items():
            assert weight.equal(gone_on.weights[name]), (folder.name, name)
        scores, _ = retraining.evaluate(folder / "model", task, rows)
        assert scores == pytest.approx({k: gone_on.scores[-1][k] for k in scores}, abs=1e-6)


def test_ranks_save_nothing_that_is_frozen(
    base: Path, tone: tuple[TaskConfig, Path], tmp_path: Path
) -> None:
    task, data = tone
    requests = []
    for method in ("head", "full"):
        for stage in (3, 2, 0):
            saved = tmp_path / f"{method}{stage}"
            saved.mkdir()
            one = on_ranks(request(task, base, data, method=method), stage)
            requests.append(replace(one, resumes_in=saved))
    run_ranks(requests, tmp_path / "ranks")

    def largest(folder: str) -> int:
        """Size of the largest file in bytes."""
        return max(p.stat().st_size for p in (tmp_path / folder).rglob("*") if p.is_file())

    for stage in (3, 2, 0):
        assert largest(f"head{stage}") < largest(f"full{stage}") / 5, stage


def test_rank_that_hangs_ends_and_so_do_those_that_wait_for_it(
    base: Path, tone: tuple[TaskConfig, Path], tmp_path: Path
) -> None:
    task, data = tone
    one = on_ranks(request(task, base, data), 2)
    hanging = replace(one, hangs_at=5, execution=replace(one.execution, hang_after_s=3.0))
    asked = tmp_path / "requests.pkl"
    asked.write_bytes(pickle.dumps([hanging]))
    ranks, logs = start_ranks("tuning_world.py", [asked, tmp_path / "found.pkl"], tmp_path, 2)
    codes = [process.wait(timeout=240) for process in ranks]
    assert HUNG in codes, codes
    assert 0 not in codes
    assert any("no step for" in log.read_text(errors="replace") for log in logs)
