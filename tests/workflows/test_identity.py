"""Properties of fingerprints: what is computed decides, where it runs does not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_pipeline, write_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.config import load_config
from workflows.outside import inspect
from workflows.pipeline import build_steps
from workflows.steps import Step

# What may be set without changing what is computed.
WHERE = {
    "storage": st.sampled_from(["/tmp/a", "./b", "s3://bucket/c", "gs://bucket/d"]),
    "cluster.pretrain.workers": st.sampled_from([1, 2, 4, {"min": 1, "max": 2}]),
    "cluster.pretrain.cpus": st.integers(1, 64),
    "cluster.pretrain.gpus": st.sampled_from([0, 1]),
    "cluster.pretrain.micro_batch_size": st.sampled_from([1, 2, "auto"]),
    "cluster.pretrain.hang_after_s": st.floats(1, 600),
    "cluster.trials.cpus": st.integers(1, 8),
    "cluster.trials.zero_stage": st.integers(0, 3),
    "cluster.trials.gpus": st.sampled_from([0, 0.5, 1]),
    "cluster.retry.max_attempts": st.integers(1, 9),
    "cluster.retry.delay_s": st.floats(0, 60),
    "cluster.shards.cpus": st.integers(1, 8),
    "cluster.lease_s": st.floats(1, 600),
    "cluster.stop_grace_s": st.floats(0, 600),
    "cluster.address": st.sampled_from(["head:6379", "auto", None]),
    "pretrain.checkpoint.every_steps": st.integers(1, 100),
    "pretrain.checkpoint.keep": st.integers(1, 9),
    "steps.own.resources.cpus": st.integers(1, 8),
}

# What is computed otherwise, and by which step first.
WHAT = {
    "pretrain.learning_rate=0.001": "pretrain",
    "pretrain.seed=3": "pretrain",
    "pretrain.promote.characters=99": "base.losses",
    "pretrain.promote.confidence=0.9": "base.promote",
    "pretrain.packing=best_fit": "tokens",
    "pretrain.shuffle_shards=3": "pretrain",
    "corpus.sources=[{path: corpus.txt, weight: 0.5}]": "pretrain",
    "corpus.clean.min_characters=5": "corpus",
    "corpus.shard_bytes=9999": "corpus",
    "tokenizer.sample_bytes=9999": "tokenizer",
    "pretrain.zero.stage=2": "pretrain",
    "model.config.num_hidden_layers=1": "pretrain",
    "tokenizer.vocab_size=600": "tokenizer",
    "corpus.validation_fraction=0.2": "corpus",
    "tasks.tone.search.trials=3": "tone.tune",
    "tasks.tone.data.split.seed=1": "tone.data",
    "tasks.places.data.split.seed=1": "places.data",
    "tasks.places.final.seeds=2": "places.final",
    "tasks.tone.promote.min_improvement=0.1": "tone.promote",
    "tensorboard=true": "track",
    "steps.own.version=2": "own",
    "steps.own.spec.anything=[1, {a: b}]": "own",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a step of the user's own."""
    path = tmp_path_factory.mktemp("identity")
    (path / "mine.py").write_text("def run(step):\n    pass\n")
    write_pipeline(path, with_own_step(tiny_pipeline(path)))
    return path


def with_own_step(data: dict[str, Any]) -> dict[str, Any]:
    own = {"uses": "mine:run", "inputs": ["tone.final"], "files": {"raw": "corpus.txt"}}
    return data | {"steps": {"own": own}}


def steps_of(folder: Path, *overrides: str) -> dict[str, Step]:
    config = load_config(folder / "pipeline.yaml", overrides)
    return {step.name: step for step in build_steps(config, inspect(config, folder))}


def fingerprints(steps: dict[str, Step]) -> dict[str, str]:
    return {name: step.fingerprint for name, step in steps.items()}


@settings(max_examples=40, deadline=None)
@given(chosen=st.fixed_dictionaries({}, optional=WHERE))
def test_where_and_how_never_change_a_fingerprint(folder: Path, chosen: dict[str, Any]) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    assert fingerprints(steps_of(folder, *overrides)) == fingerprints(steps_of(folder))


@settings(max_examples=40, deadline=None)
@given(chosen=st.sets(st.sampled_from(sorted(WHAT)), min_size=1, max_size=4))
def test_what_is_computed_changes_exactly_the_step_and_its_descendants(
    folder: Path, chosen: set[str]
) -> None:
    before, after = steps_of(folder), steps_of(folder, *sorted(chosen))
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    expected = {WHAT[override] for override in chosen}
    for name, step in before.items():  # each stands behind its inputs
        if expected & {other.name for other in step.inputs.values()}:
            expected.add(name)
    assert changed == expected


def test_another_folder_host_process_and_hash_seed_give_the_same_fingerprints(
    folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    shutil.copytree(folder, elsewhere)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_identity import fingerprints, steps_of\n"
        "print(json.dumps(fingerprints(steps_of(Path(sys.argv[2])))))"
    )
    tests = Path(__file__).parent
    on_another_host = ["unshare", "--uts", "sh", "-c", 'hostname other; exec "$@"', "sh"]
    if os.geteuid() != 0:
        on_another_host = []  # only root may give a process another host name
    settings = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(tests.parent), "TZ": "Asia/Tokyo"}
    told = subprocess.run(
        [*on_another_host, sys.executable, "-c", code, str(tests), str(elsewhere)],
        env=os.environ | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout) == fingerprints(steps_of(folder))


def test_renaming_a_file_or_a_pipeline_changes_nothing_but_what_has_its_name(
    folder: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    (renamed / "corpus.txt").rename(renamed / "other.txt")
    data = with_own_step(tiny_pipeline(tmp_path))
    data["corpus"]["sources"] = [{"path": "other.txt"}]
    data["steps"]["own"]["files"] = {"raw": "other.txt"}
    write_pipeline(renamed, data)
    assert fingerprints(steps_of(renamed)) == fingerprints(steps_of(folder))


def test_files_that_change_places_are_another_computation(folder: Path, tmp_path: Path) -> None:
    """Two files of an own step are told apart by name, not only by what is in them."""
    swapped = tmp_path / "swapped"
    shutil.copytree(folder, swapped)
    data = with_own_step(tiny_pipeline(tmp_path))
    found = []
    for files in ({"a": "corpus.txt", "b": "tone.csv"}, {"b": "corpus.txt", "a": "tone.csv"}):
        data["steps"]["own"]["files"] = files
        write_pipeline(swapped, data)
        found.append(steps_of(swapped)["own"].fingerprint)
    assert found[0] != found[1]


def test_sources_that_change_places_are_another_corpus(folder: Path, tmp_path: Path) -> None:
    """Weights, columns and which of equal documents stays go by the order of the sources."""
    swapped = tmp_path / "swapped"
    shutil.copytree(folder, swapped)
    (swapped / "more.txt").write_text("some more text\nand more\n")
    data = with_own_step(tiny_pipeline(tmp_path))
    found = []
    for names in (["corpus.txt", "more.txt"], ["more.txt", "corpus.txt"]):
        data["corpus"]["sources"] = [{"path": name} for name in names]
        write_pipeline(swapped, data)
        found.append(steps_of(swapped)["corpus"].fingerprint)
    assert found[0] != found[1]
    # So do files of one source, which are read in the order of their names.
    data["corpus"]["sources"] = [{"path": "*.txt"}]
    (swapped / "places.txt").unlink()
    (swapped / "places.csv").write_text("word\tO\n")
    data["tasks"]["places"]["data"]["path"] = "places.csv"
    write_pipeline(swapped, data)
    before = steps_of(swapped)["corpus"].fingerprint
    (swapped / "more.txt").rename(swapped / "a.txt")
    assert steps_of(swapped)["corpus"].fingerprint != before
    (swapped / "a.txt").rename(swapped / "b.txt")
    again = steps_of(swapped)["corpus"].fingerprint
    (swapped / "b.txt").rename(swapped / "a.txt")
    assert steps_of(swapped)["corpus"].fingerprint == again
