"""The whole tiny pipeline through the command line, on a real local Ray."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_pipeline, write_pairs, write_pipeline
from processes import PRETUNE, pretune, traces_of_ray, wait_for

from workflows.artifacts import Artifacts
from workflows.history import run_ids
from workflows.journal import read
from workflows.ledger import Position, Release
from workflows.steps import StepRef
from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Run:
    folder: Path
    pipeline: Path
    storage: Path
    answer: subprocess.CompletedProcess[str]
    left_behind: set[str]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.answer.stdout)
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tiny")
    pipeline = write_pipeline(folder, tiny_pipeline(folder))
    before = traces_of_ray()
    answer = pretune("run", pipeline, "--json", folder=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Run(folder, pipeline, folder / "storage", answer, traces_of_ray() - before)


def test_every_step_is_done_and_both_tasks_are_promoted(finished: Run) -> None:
    assert set(finished.summary["states"].values()) == {"done"}
    assert finished.summary["champions"] == {
        "tiny.places": "tiny.places@1",
        "tiny.tone": "tiny.tone@1",
    }
    assert finished.summary["failures"] == []


def test_ray_and_its_files_are_gone(finished: Run) -> None:
    assert finished.left_behind == set()


def test_the_terminal_shows_progress_and_no_chatter(finished: Run) -> None:
    lines = finished.answer.stderr.splitlines()
    assert lines[0].startswith("run tiny-")
    steps = {line.split()[1].rstrip(":") for line in lines[1:]}
    assert steps == set(finished.summary["states"])


def test_second_run_reuses_everything_and_starts_no_ray(finished: Run) -> None:
    started = time.monotonic()
    answer = pretune("run", finished.pipeline, "--json", folder=finished.folder)
    assert time.monotonic() - started < 15
    assert answer.returncode == 0
    assert set(json.loads(answer.stdout)["states"].values()) == {"reused"}
    assert len(list((finished.storage / "runs").iterdir())) == 1


def test_base_model_loads_with_no_missing_or_unexpected_keys(finished: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (folder,) = finished.storage.glob("artifacts/pretrain/*/*/output")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size == 512
    facts = json.loads((folder / "pretraining.json").read_text())
    assert facts["world_size"] == 2
    assert facts["samples"] == 80
    assert facts["history"][-1]["loss"] < facts["history"][0]["loss"]
    assert "validation_loss" in facts["history"][-1]


def test_report_is_one_file_that_needs_no_network(finished: Run) -> None:
    page = Path(finished.summary["report"]).read_text(encoding="utf-8")
    for expected in ("tone", "places", "tf-idf", "same network from random weights", "majority"):
        assert expected in page
    assert page.count("data:image/svg+xml;base64,") == 14
    assert "http://" not in page
    assert "https://" not in page
    assert len(page.encode()) < 2_000_000


def test_report_is_made_again_from_the_storage_alone(finished: Run) -> None:
    own, again = Path(finished.summary["report"]), finished.folder / "again.html"
    told = ("--storage", finished.storage, "--output", again)
    answer = pretune("report", own.parent.name, *told, folder=finished.folder)
    assert answer.returncode == 0, answer.stderr
    assert again.read_bytes() == own.read_bytes()


def test_a_trials_log_is_found_by_its_name(finished: Run) -> None:
    run = Path(finished.summary["report"]).parent
    told = ("--storage", finished.storage)
    for table in finished.storage.glob("artifacts/tune/*/*/output/trials.json"):
        trial, *_ = json.loads(table.read_text())
        answer = pretune("logs", run.name, trial["trial_id"], *told, folder=finished.folder)
        assert answer.returncode == 0, answer.stderr
        assert re.match(r"==> (tone|places)\.tune\.slot-\S+-\d+\.log\n", answer.stderr)
    unknown = pretune("logs", run.name, "none", *told, folder=finished.folder)
    assert unknown.returncode == 2
    assert "no log of 'none'" in unknown.stderr


def test_models_are_listed_shown_and_used(finished: Run) -> None:
    storage = ("--storage", finished.storage)
    listed = json.loads(
        pretune("models", "list", "--json", *storage, folder=finished.folder).stdout
    )
    assert [(row["model"], row["champion"], row["metric"]) for row in listed] == [
        ("tiny.base", None, None),
        ("tiny.places", 1, "entity_f1"),
        ("tiny.tone", 1, "accuracy"),
    ]
    shown = pretune("models", "show", "tiny.tone", "--json", *storage, folder=finished.folder)
    facts = json.loads(shown.stdout)
    assert "model.safetensors" in facts["files"]
    assert facts["promotions"][0]["reason"].startswith("the first")
    texts = ("--text", "a wonderful day", "--text", "a terrible day")
    answer = pretune(
        "predict", "tiny.tone@champion", *texts, "--json", *storage, folder=finished.folder
    )
    assert [row["prediction"] for row in json.loads(answer.stdout)] == ["good", "bad"]
    texts = ("--text", "we met in Rome")
    words = pretune("predict", "tiny.places", *texts, "--json", *storage, folder=finished.folder)
    (row,) = json.loads(words.stdout)
    assert row["text"] == ["we", "met", "in", "Rome"]
    assert len(row["prediction"]) == 4


def test_pretrained_model_is_a_version_that_says_why_it_is_not_the_champion(finished: Run) -> None:
    """Twenty steps are not enough to know more than how frequent tokens are."""
    told = finished.summary["promotions"]["base.promote"]
    assert (told["model"], told["outcome"]) == ("tiny.base@1", "not promoted")
    assert "of the tokens' own frequencies" in told["reason"]
    card = next((finished.storage / "models/tiny.base/files").glob("*/README.md"))
    assert told["reason"] in card.read_text(encoding="utf-8")
    assert told["reason"] in html.unescape(Path(finished.summary["report"]).read_text())


def test_promoted_model_is_a_plain_hugging_face_folder(finished: Run) -> None:
    from transformers import pipeline

    (folder,) = (finished.storage / "models" / "tiny.tone" / "files").iterdir()
    (answer,) = pipeline("text-classification", model=str(folder))("a wonderful day")
    assert answer["label"] == "good"


def test_mlflow_has_the_runs_the_versions_and_the_alias(finished: Run) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished.storage / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny.tone", "champion")
    assert version.tags["pretune.version"] == "1"
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + 1 + 2 + 2  # the parent, pretraining, two trials of each task
    (pretrain,) = [run for run in runs if run.info.run_name == "pretrain"]
    assert len(client.get_metric_history(pretrain.info.run_id, "loss")) == 20
    answer = pretune("models", "sync", "--storage", finished.storage, folder=finished.folder)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].endswith("runs 0, versions 0")


def test_status_is_read_from_the_storage(finished: Run) -> None:
    answer = pretune("status", "--storage", finished.storage, "--json", folder=finished.folder)
    steps = json.loads(answer.stdout)["steps"]
    assert {step["state"] for step in steps.values()} == {"done"}
    assert steps["pretrain"]["samples"] == 80


def test_numbers_for_pairs_are_learnt_by_adapters_and_with_fewer_labels(finished: Run) -> None:
    data = tiny_pipeline(finished.folder)
    write_pairs(finished.folder / "pairs.csv", rows=160)
    data["tasks"]["alike"] = {
        "type": "regression",
        "data": {
            "path": "pairs.csv",
            "text": "first",
            "text_pair": "second",
            "label": "number",
            "split": {"test": 0.25, "validation": 0.25},
        },
        "metric": "mse",
        "max_length": 64,
        "search": {
            "trials": 3,
            "searcher": "grid",
            "scheduler": "median",
            "space": {
                "method": {"lora": {"lora_rank": [2, 4]}, "head": {}},
                "learning_rate": 0.01,
                "epochs": 2,
            },
        },
        "final": {"top": 1, "seeds": 1},
        "controls": {
            "scratch": True,
            "scratch_learning_rates": [1.0],
            "label_fractions": [0.2, 1.0],
        },
    }
    answer = pretune("run", write_pipeline(finished.folder, data), "--json", folder=finished.folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    summary = json.loads(answer.stdout)
    assert summary["states"]["pretrain"] == "reused"
    files = finished.storage.glob("artifacts/final/*/*/output/final.json")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    (result,) = [one for one in found if one["metric"] == "mse"]
    assert result["constant"] == "mean"
    few, whole = result["label_fractions"]
    assert few["rows"] == pytest.approx(whole["rows"] / 5, abs=1)
    assert [len(line[origin]) for line in (few, whole) for origin in ("pretrained", "scratch")] == [
        1
    ] * 4
    assert whole["pretrained"] == [result["test"]]
    assert "With fewer labels" in Path(summary["report"]).read_text(encoding="utf-8")
    predict = ("predict", "tiny.alike@1", "--json", "--storage", finished.storage)
    told = pretune(*predict, "--text", "one", "--text", "another", folder=finished.folder)
    (row,) = json.loads(told.stdout)
    assert row["text_pair"] == "another"
    assert isinstance(row["prediction"], float)
    odd = pretune(*predict, "--text", "one", folder=finished.folder)
    assert odd.returncode == 2
    assert "give pairs" in odd.stderr


def test_task_that_fails_does_not_stop_the_other_and_is_named_at_the_end(finished: Run) -> None:
    data = tiny_pipeline(finished.folder)
    with (finished.folder / "places.txt").open("a", encoding="utf-8") as file:
        file.write("no label on this line\n")
    data["tasks"]["tone"]["final"] = {"seeds": 1}  # another model than the champion
    data["tasks"]["tone"]["promote"] = {"min_improvement": 0.5}
    answer = pretune("run", write_pipeline(finished.folder, data), "--json", folder=finished.folder)
    summary = json.loads(answer.stdout)
    assert summary["states"]["places.data"] == "failed"
    assert summary["states"]["places.promote"] == "blocked"
    assert summary["states"]["pretrain"] == "reused"
    assert summary["states"]["tone.promote"] == "done"
    assert not summary["promotions"]["tone.promote"]["promoted"]
    assert answer.returncode == 2
    assert "failed: places.data: " in answer.stderr
    assert "expected word, tab, label" in answer.stderr
    assert Path(summary["failures"][0]["log"]).is_file()
    assert "did not get this far" in Path(summary["report"]).read_text(encoding="utf-8")


def test_outputs_of_every_kind_can_be_adopted(finished: Run, tmp_path: Path) -> None:
    """What steps leave behind is what adoption asks for."""
    pipeline = write_pipeline(tmp_path, tiny_pipeline(tmp_path))
    steps = ("tone.data", "corpus", "tokenizer", "tokens", "pretrain", "tone.tune", "tone.final")
    for step in steps:
        kind = step.rpartition(".")[2]
        folder = next(finished.storage.glob(f"artifacts/{kind}/*/*/output"))
        answer = pretune("adopt", pipeline, step, folder, folder=tmp_path)
        assert answer.returncode == 0, answer.stderr
    rows = json.loads(pretune("plan", pipeline, "--json", folder=tmp_path).stdout)
    assert {row["step"] for row in rows if row["plan"] == "REUSE"} >= {"tokens", "tone.final"}


def test_adopted_checkpoint_is_tuned_tracked_and_reported(finished: Run, tmp_path: Path) -> None:
    """A base from elsewhere: no corpus is read, nothing is pretrained."""
    (trained,) = finished.storage.glob("artifacts/pretrain/*/*/output")
    base = tmp_path / "base"
    shutil.copytree(trained, base)
    (base / "pretraining.json").unlink()
    data = tiny_pipeline(tmp_path)
    data["pretrain"]["promote"] = None
    del data["tasks"]["places"]
    pipeline = write_pipeline(tmp_path, data)
    assert pretune("adopt", pipeline, "pretrain", base, folder=tmp_path).returncode == 0
    answer = pretune("run", pipeline, "--json", "--quiet", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stderr == ""
    summary = json.loads(answer.stdout)
    states = summary["states"]
    assert {states.pop(name) for name in ("corpus", "tokenizer", "tokens")} == {"not needed"}
    assert states.pop("pretrain") == "reused"
    assert set(states.values()) == {"done"}
    assert summary["champions"] == {"tiny.tone": "tiny.tone@1"}
    assert "tf-idf" in Path(summary["report"]).read_text(encoding="utf-8")


def checkpoints(storage: Path) -> int:
    return len(list(storage.glob("artifacts/pretrain/*/*/work/checkpoints/*/manifest.json")))


def run_until_stopped(pipeline: Path, storage: Path, stop: Callable[[int], None]) -> int:
    """Stop a run in some way once it has written two more checkpoints; its exit code."""
    before = checkpoints(storage)
    process = subprocess.Popen(
        [PRETUNE, "run", str(pipeline)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: checkpoints(storage) >= before + 2)
    stop(process.pid)
    return process.wait()


@pytest.mark.soak
def test_stopped_and_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    data = tiny_pipeline(tmp_path)
    data["pretrain"]["tokens"] = 700 * 256
    # Whether to stop is looked at every ten steps: seldom where a checkpoint is due anyway.
    data["pretrain"]["checkpoint"] = {"every_steps": 19, "keep": 50}
    del data["tasks"]["places"]
    pipeline, storage = write_pipeline(tmp_path, data), tmp_path / "storage"
    artifacts = Artifacts(Storage.at(storage))

    def is_released() -> bool:
        (folder,) = storage.glob("artifacts/pretrain/*")
        position = artifacts.ledger.position(StepRef("", "pretrain", folder.name), Position())
        return isinstance(position.entry, Release)

    def signalled(number: signal.Signals) -> Callable[[int], None]:
        return lambda process: os.kill(process, number)

    before = traces_of_ray()
    assert run_until_stopped(pipeline, storage, signalled(signal.SIGTERM)) == 75
    assert is_released()
    assert traces_of_ray() - before == set()
    stopped_at = sorted(path.name for path in storage.glob("artifacts/pretrain/*/*/work/*/step-*"))
    assert run_until_stopped(pipeline, storage, signalled(signal.SIGKILL)) == -signal.SIGKILL
    assert not is_released()
    # Ray's agents notice a killed driver only after a minute; those that work, at once.
    wait_for(lambda: not any("RayTrainWorker" in trace for trace in traces_of_ray()), timeout_s=60)
    assert not list(storage.glob("done/pretrain/*"))

    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    folders = {trace for trace in traces_of_ray() - before if trace.startswith("/tmp")}
    assert folders == set()  # those of the killed driver, too
    states = json.loads(answer.stdout)["states"]
    assert states["tokens"] == "reused"
    assert states["pretrain"] == "done"
    # A stop saves a checkpoint of its own, wherever the training is.
    assert any(int(name.removeprefix("step-")) % 19 for name in stopped_at)
    last_run = max((storage / "runs").iterdir(), key=lambda path: path.name)
    assert "resumed after step" in (last_run / "logs" / "pretrain.rank0.log").read_text()
    steps = [
        event["optimizer_step"]
        for event in read(Storage.at(storage), f"runs/{last_run.name}/events")
        if event["event"] == "progress"
    ]
    assert steps[0] > 76  # two checkpoints of each interrupted run are behind it
    assert steps[-1] == 700
    facts = json.loads(next(storage.glob("artifacts/pretrain/*/*/output/p*.json")).read_text())
    assert facts["samples"] == 700 * 4
    assert [point["optimizer_step"] for point in facts["history"]] == list(range(7, 701, 7))
    # What the interrupted attempts left is garbage now.
    found = json.loads(pretune("gc", "--storage", storage, "--json", folder=tmp_path).stdout)
    assert len(found) >= 2
    pretune("gc", "--storage", storage, "--delete", folder=tmp_path)
    assert len(list(storage.glob("artifacts/pretrain/*/*"))) == 1


def test_a_promoted_model_is_the_base_of_another_task(finished: Run, tmp_path: Path) -> None:
    whole = tiny_pipeline(tmp_path)
    shutil.copytree(finished.storage, tmp_path / "storage")
    other = {
        "name": "more",
        "storage": whole["storage"],
        "base": {"store": "tiny.tone@champion"},
        "tasks": {"places": whole["tasks"]["places"]},
    }
    pipeline = write_pipeline(tmp_path, other)
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert summary["champions"]["more.places"] == "more.places@1"
    assert summary["states"]["base"] == "done"
    report = (tmp_path / "storage" / "runs" / summary["run"] / "report.html").read_text("utf-8")
    assert "tiny.tone@1 of the model store; not pretrained here" in report

    replay = ("models", "replay", "more.places", "--storage", tmp_path / "storage")
    told = pretune(*replay, folder=tmp_path).stdout
    assert yaml.safe_load(told)["base"] == {"store": "tiny.tone@1"}
    alone = pretune(*replay, "--into", tmp_path / "again", folder=tmp_path)
    assert alone.returncode == 2
    assert "its base is tiny.tone@1, a model of this one" in alone.stderr

    again = pretune("plan", pipeline, "--json", folder=tmp_path)
    assert {step["plan"] for step in json.loads(again.stdout)} == {"REUSE"}
    answer = pretune("verify-resume", pipeline, folder=tmp_path)
    assert answer.returncode == 2
    assert "pretrains nothing" in answer.stderr


def test_what_the_page_about_python_says_runs(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    write_pipeline(tmp_path / "project", tiny_pipeline(tmp_path / "project"))
    shutil.copytree(finished.storage, tmp_path / "project" / "storage")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, known)
    assert known["ended"].champions["tiny.tone"] == "tiny.tone@1"
    assert set(known["ended"].states.values()) == {"reused"}
    assert known["tone"]("a wonderful day")[0]["label"] == "good"


def test_a_finished_search_is_gone_on_with(finished: Run, tmp_path: Path) -> None:
    whole = tiny_pipeline(tmp_path)
    shutil.copytree(finished.storage, tmp_path / "storage")
    pipeline = write_pipeline(tmp_path, whole)

    def trials() -> list[list[dict[str, Any]]]:
        files = (tmp_path / "storage").glob("artifacts/tune/*/*/output/trials.json")
        found = [json.loads(file.read_text()) for file in files]
        of_tone = [t for t in found if "macro_f1" in t[0]["history"][0]]
        return sorted(of_tone, key=len)

    (before,) = trials()
    answer = pretune("extend", pipeline, "tone", "--trials", "+2", "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "tone: from 2 to 4 trials" in answer.stderr
    states = json.loads(answer.stdout)["states"]
    done = {name for name, state in states.items() if state == "done"}
    assert done == {"tone.tune", "tone.final", "tone.promote", "track", "report"}
    shorter, longer = trials()
    assert shorter == before
    assert longer[:2] == before
    assert len({trial["trial_id"] for trial in longer}) == len(longer) == 4

    newest = run_ids(Storage.at(tmp_path / "storage"))[-1]
    first = finished.summary["run"]
    compare = ("compare", first, newest, "--storage", tmp_path / "storage", "--json")
    found = json.loads(pretune(*compare, folder=tmp_path).stdout)
    assert {"key": "tasks.tone.search.trials", "a": 2, "b": 4} in found["config"]
    assert {row["key"] for row in found["config"]} == {"storage", "tasks.tone.search.trials"}
    of_task = {row["task"]: row for row in found["scores"]}
    assert of_task["tone"]["rows"] > 0
    assert of_task["places"]["gain"] == 0.0
    assert of_task["places"]["a"] == of_task["places"]["b"]
    assert {row["step"] for row in found["seconds"] if not row["same"]} == done
    shown = pretune(*compare[:-1], folder=tmp_path).stdout
    assert "tasks.tone.search.trials" in shown

    raised = pretune(
        "plan", pipeline, "--set", "tasks.tone.search.trials=4", "--json", folder=tmp_path
    )
    assert {step["plan"] for step in json.loads(raised.stdout)} == {"REUSE"}


@pytest.mark.soak
def test_an_extension_that_was_killed_goes_on_where_it_was(finished: Run, tmp_path: Path) -> None:
    data = tiny_pipeline(tmp_path)
    data["cluster"]["lease_s"] = 5.0
    # Other trials than those of two values, which are trained twice and then known.
    data["tasks"]["tone"]["search"]["space"]["learning_rate"] = {"loguniform": [0.003, 0.03]}
    shutil.copytree(finished.storage, tmp_path / "storage")
    pipeline, storage = write_pipeline(tmp_path, data), Storage.at(tmp_path / "storage")
    first = pretune("run", pipeline, "--only", "tone.tune", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    earlier = {run.name for run in (tmp_path / "storage" / "runs").iterdir()}
    extend = ("extend", str(pipeline), "tone", "--trials", "+40")

    def told() -> list[Any]:
        """Of each epoch of a trial since."""
        runs = {run.name for run in (tmp_path / "storage" / "runs").iterdir()} - earlier
        return [
            event
            for run in runs
            for event in read(storage, f"runs/{run}/events")
            if event["event"] == "trial" and event["step"] == "tone.tune"
        ]

    def workers(traces: set[str]) -> list[str]:
        """Ray's agents on a node stay a minute longer, and train nothing."""
        return [trace for trace in traces if "ray::" in trace and "Agent" not in trace]

    others = traces_of_ray()
    process = subprocess.Popen(
        [PRETUNE, *extend], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(told()) >= 6)
    process.kill()
    process.wait()
    wait_for(lambda: not workers(traces_of_ray() - others), timeout_s=60)
    before = told()
    answer = pretune(*extend, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["states"]["tone.tune"] == "done"
    files = storage.path("artifacts").glob("tune/*/*/output/trials.json")
    trials = max((json.loads(file.read_text()) for file in files), key=len)
    assert len({trial["trial_id"] for trial in trials}) == len(trials) == 42
    assert not {trial["trial_id"] for trial in trials[:2]} & {event["trial"] for event in told()}
    # What was trained before the driver died is part of the search; at most it is told again.
    assert len(before) < 2 * 40
    losses = {epoch["loss"] for trial in trials[2:] for epoch in trial["history"]}
    assert {event["loss"] for event in before} <= losses
    assert len(told()) <= 2 * 40 + len(before)


def test_a_version_is_made_again_from_what_it_tells(finished: Run, tmp_path: Path) -> None:
    replay = ("models", "replay", "tiny.tone", "--storage", finished.storage)
    told = pretune(*replay, folder=tmp_path).stdout
    assert told.startswith("# tiny.tone@1, made by the run tiny-")
    assert f"# paths are below {finished.folder}\n" in told
    assert f"  {finished.folder / 'tone.csv'}\n" in told
    assert yaml.safe_load(told)["tasks"]["tone"]["metric"] == "accuracy"

    same = pretune(*replay, "--into", finished.storage, folder=tmp_path)
    assert same.returncode == 2
    assert "--into is this storage" in same.stderr

    other = tmp_path / "other"
    other.mkdir()
    for name in ("corpus.txt", "tone.csv", "places.txt"):
        (other / name).write_bytes((finished.folder / name).read_bytes())
    with (other / "tone.csv").open("a") as file:
        file.write("\nsomething new,good")
    into = ("--into", tmp_path / "again")
    changed = pretune(*replay, *into, "--folder", other, folder=tmp_path)
    assert changed.returncode == 2
    assert f"cannot be made again: {finished.folder / 'tone.csv'}: not what it" in changed.stderr
    assert not (tmp_path / "again").exists()

    again = pretune(*replay, *into, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "was made again: the weights are the same" in again.stdout
    assert not (tmp_path / "again" / "models").exists()
    twice = pretune(*replay, *into, folder=tmp_path)
    assert twice.returncode == 2
    assert "has that training already; give another storage" in twice.stderr


def test_champion_is_asked_about_other_rows_and_a_person_has_the_last_word(
    finished: Run, tmp_path: Path
) -> None:
    data = tiny_pipeline(tmp_path)
    tone = data["tasks"]["tone"]
    tone["data"]["split"]["seed"] = 1  # other test rows than the champion's
    guards = tone["promote"]["guards"]
    tone["promote"] = {
        "approve": "manual",
        "mode": "non_inferior",
        "margin": 0.5,
        "guards": guards,
    }
    shutil.copytree(finished.storage, tmp_path / "storage")
    pipeline = write_pipeline(tmp_path, data)
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert summary["champions"]["tiny.tone"] == "tiny.tone@1"
    facts = summary["promotions"]["tone.promote"]
    assert facts["outcome"] == "waits for pretune models promote tiny.tone@candidate"
    champion = facts["compared"]["champion"]
    assert champion["model"] == "tiny.tone@1"
    assert champion["rows"] == facts["compared"]["constant"]["rows"] > 0
    assert set(facts["guards"]) == {"size_mb", "latency_p50_ms", "latency_p95_ms", "seed_spread"}
    openings = [
        json.loads(path.read_text())["step"]
        for path in sorted((tmp_path / "storage").glob("openings/*/*.json"))
        if json.loads(path.read_text())["run"] == summary["run"]
    ]
    assert sorted(step for step in openings if step.startswith("tone")) == [
        "tone.final",
        "tone.promote",
    ]
    storage = ("--storage", tmp_path / "storage")
    told = pretune("models", "promote", "tiny.tone@candidate", *storage, folder=tmp_path)
    assert told.returncode == 0, told.stderr
    listed = pretune("models", "list", "--json", *storage, folder=tmp_path)
    (row,) = [row for row in json.loads(listed.stdout) if row["model"] == "tiny.tone"]
    assert f"tiny.tone@{row['champion']}" == facts["model"]
