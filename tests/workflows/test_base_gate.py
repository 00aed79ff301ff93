"""The gate of pretrained models: on what they lost, and through its steps in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_base, tiny_pipeline, write_pipeline
from typer.testing import CliRunner

from cluster.local import LocalCluster
from trainers import document_losses
from trainers.document_losses import DocumentLosses
from workflows import base_judgement, failpoints, runner
from workflows.adoption import adopt
from workflows.base_judgement import Scored
from workflows.cli import app
from workflows.config import ConfigError, load_config
from workflows.judgement import Judgement
from workflows.models import ModelStore, Version
from workflows.planning import Selection, State
from workflows.promote_config import RuleConfig
from workflows.promotion import Keep, Promote
from workflows.replay import Origin, Replay
from workflows.report.page import render
from workflows.session import Session
from workflows.storage import Storage

NAME = "tiny.base"
DOCUMENTS = 300
RANDOM = np.random.default_rng(0)
DIFFICULTY = RANDOM.uniform(0.5, 1.5, DOCUMENTS)
BYTES = RANDOM.integers(50, 500, DOCUMENTS).astype(float)


def losses(
    bits: float, *, unit: str = "bits_per_byte", documents: str = "these", noise: int = 1
) -> DocumentLosses:
    """Of a model that needs about so many bits a byte; the constant needs 4."""
    own = 1 + 0.05 * np.random.default_rng(noise).standard_normal(DOCUMENTS)
    nats = bits * np.log(2) * BYTES * DIFFICULTY * own
    return DocumentLosses(nats, 4 * np.log(2) * BYTES, BYTES, unit, documents)


class World:
    """A store on this machine, and models that lost so much."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "storage"
        self.store = ModelStore(Storage.at(self.root))

    def add(
        self, lost: DocumentLosses, *, objective: str = "causal", rule: RuleConfig | None = None
    ) -> Version:
        source = self.folder / "model"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        document_losses.write(source / document_losses.FILE, lost)
        number = len(self.store.versions(NAME))
        return self.store.add(
            NAME,
            source,
            fingerprint="f",
            attempt=f"a{number}",
            task={},
            scores={},
            more={
                "metric": lost.metric,
                "objective": objective,
                "sequence_length": 16,
                "promote": (rule or RuleConfig()).model_dump(mode="json"),
                "judgement": {"reason": ""},
            },
        )

    def promote(self, version: Version) -> None:
        expected = self.store.champion(NAME)
        self.store.promote(version, expected=expected, reason="for the test", run="run")

    def judge(
        self,
        lost: DocumentLosses,
        *,
        ask: base_judgement.Ask | None = None,
        objective: str = "causal",
        **rule: Any,
    ) -> Judgement:
        scored = Scored(lost, objective, RuleConfig.model_validate(rule))
        return base_judgement.judge(self.store, self.store.champion(NAME), scored, ask)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_first_model_must_know_more_than_frequencies(world: World) -> None:
    found = world.judge(losses(2.0))
    assert isinstance(found.verdict, Promote)
    constant = found.facts["compared"]["constant"]
    assert constant["score"] == pytest.approx(4.0)
    assert constant["value"] == pytest.approx(4.0 - found.facts["score"])
    assert constant["rows"] == DOCUMENTS
    assert isinstance(world.judge(losses(4.5)).verdict, Keep)


@pytest.mark.parametrize(
    ("bits", "rule", "expected"),
    [
        (1.9, {}, Promote),
        (2.1, {}, Keep),
        (1.98, {}, Keep),  # a gain that may be luck with these documents
        (1.98, {"confidence": 0.0}, Promote),
        (1.9, {"min_improvement": 0.2}, Keep),
        (2.02, {"mode": "non_inferior", "margin": 0.1}, Promote),
        (2.2, {"mode": "non_inferior", "margin": 0.1}, Keep),
    ],
)
def test_a_challenger_is_compared_with_what_the_champion_lost(
    world: World, bits: float, rule: dict[str, Any], expected: type
) -> None:
    world.promote(world.add(losses(2.0)))
    found = world.judge(losses(bits, noise=2), **rule)
    assert isinstance(found.verdict, expected), found.verdict.reason
    assert found.facts["compared"]["champion"]["model"] == f"{NAME}@1"


def test_a_champion_of_other_documents_is_asked_again_or_not_compared(world: World) -> None:
    champion = world.add(losses(2.0, documents="others"))
    world.promote(champion)
    asked = []

    def ask(version: Version) -> DocumentLosses:
        asked.append(version)
        return losses(1.5)

    assert isinstance(world.judge(losses(1.9), ask=ask).verdict, Keep)
    assert asked == [champion]
    assert "tested on other rows" in world.judge(losses(1.9)).verdict.reason


def test_what_rounding_changes_is_no_gain(world: World) -> None:
    lost = losses(2.0)
    world.promote(world.add(lost))
    found = world.judge(replace(lost, nats=lost.nats * (1 - 1e-8)), confidence=0.0)
    assert isinstance(found.verdict, Keep)
    assert found.facts["compared"]["champion"]["value"] == 0.0


def test_losses_of_other_tokens_or_another_objective_are_not_compared(world: World) -> None:
    world.promote(world.add(losses(2.0, unit="bits_per_byte of tokenizer a")))
    other = world.judge(losses(1.0, unit="bits_per_byte of tokenizer b"))
    assert "of other tokens" in other.verdict.reason
    masked = world.judge(
        losses(1.0, unit="nats_per_hidden_token of tokenizer a"),
        objective="masked",
        ask=lambda _: pytest.fail("asked"),
    )
    assert "of another task: causal language modelling" in masked.verdict.reason


def test_without_held_out_documents_nothing_is_promoted(world: World) -> None:
    none = replace(losses(1.0), nats=np.zeros(0), constant_nats=np.zeros(0), counts=np.zeros(0))
    found = world.judge(none)
    assert isinstance(found.verdict, Keep)
    assert "corpus.validation_fraction" in found.verdict.reason


def test_promotion_by_hand_goes_through_the_same_gate(world: World) -> None:
    world.promote(world.add(losses(2.0)))
    weak, strong = world.add(losses(2.1)), world.add(losses(1.5))
    command = ("models", "promote", "--storage", str(world.root))
    answer = CliRunner().invoke(app, [*command, str(weak)])
    assert answer.exit_code == 1, answer.output
    answer = CliRunner().invoke(app, [*command, str(strong)])
    assert answer.exit_code == 0, answer.output
    assert world.store.champion(NAME) == strong
    assert world.store.log(NAME)[-1]["how"] == "gate"


def save_patterns(folder: Path) -> None:
    """A corpus whose next word is always clear."""
    words = ["red", "green", "blue", "white"]
    lines = [" ".join(words[(n + k) % 4] for k in range(12)) + f" {n}" for n in range(300)]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")


def save_trained(folder: Path, corpus: Path, steps: int) -> Path:
    """A base that has read the corpus for so many steps."""
    from transformers import AutoModelForCausalLM

    from trainers import tokenizer

    folder.mkdir()
    torch.manual_seed(0)
    save_base(folder)
    plain, end = tokenizer.plain(folder)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    rows = [[end, *plain.encode(line, add_special_tokens=False).ids][:32] for line in lines]
    ids = torch.tensor([row for row in rows if len(row) == 32])
    network = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        network(input_ids=ids[:64], labels=ids[:64]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)
    (folder / "training.bin").write_bytes(b"what no version may hold")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> dict[str, Any]:
    """Whose pretraining is taken in from elsewhere, and whose corpus needs no task."""
    data = tiny_pipeline(tmp_path)
    save_patterns(tmp_path)
    data["corpus"]["held_out"] = []
    data["cluster"] = {"retry": {"delay_s": 0}}
    return data


def run(folder: Path, data: dict[str, Any], base: Path) -> tuple[Session, dict[str, State]]:
    """Judge a base as if the pipeline had trained it."""
    session = Session.open(load_config(write_pipeline(folder, data)), folder)
    step = next(step for step in session.steps if step.name == "pretrain")
    adopt(step, base, session.artifacts, "run", force=True)
    names = frozenset({"corpus", "base.losses", "base.promote"})
    plan = session.plan(Selection(only=names))
    session.write_head(plan)
    result = runner.run(session.steps, plan, session.context(LocalCluster()), session.journal)
    return session, {name: result.states[name] for name in names}


def facts_of(session: Session) -> dict[str, Any]:
    step = next(step for step in session.steps if step.name == "base.promote")
    record = session.artifacts.find(step)
    assert record is not None
    return dict(record.facts)


def test_a_base_becomes_a_version_that_loads_and_the_next_one_must_beat_it(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    corpus = tmp_path / "corpus.txt"
    session, states = run(tmp_path, pipeline, save_trained(tmp_path / "one", corpus, 20))
    assert set(states.values()) == {State.DONE}
    facts, store = facts_of(session), ModelStore(session.paths.storage)
    assert (facts["model"], facts["outcome"]) == (f"{NAME}@1", "promoted"), facts
    assert facts["metric"] == "bits_per_byte"
    first = store.resolve(NAME)
    folder = store.verified(first)
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    names = set(store.facts(first)["files"])
    assert {"README.md", "lineage.json", "pipeline.yaml", "losses.parquet"} <= names
    assert not {"training.bin", "documents.json"} & names
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"bits_per_byte of {facts['score']:.4f}" in card
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    assert [step["kind"] for step in lineage["steps"]] == ["pretrain"]
    assert lineage["run"] == session.paths.run_id

    pipeline["pretrain"]["seed"] = 1  # another training
    pipeline["pretrain"]["promote"] = {"documents": 7}  # and other documents
    session, _ = run(tmp_path, pipeline, save_trained(tmp_path / "two", corpus, 60))
    facts = facts_of(session)
    assert (facts["champion"], facts["promoted"]) == (f"{NAME}@2", True), facts
    assert facts["compared"]["champion"]["model"] == f"{NAME}@1"
    assert facts["compared"]["champion"]["rows"] == 7

    pipeline["pretrain"]["seed"] = 2
    session, _ = run(tmp_path, pipeline, save_trained(tmp_path / "three", corpus, 5))
    facts = facts_of(session)
    assert (facts["champion"], facts["promoted"]) == (f"{NAME}@2", False), facts
    assert [version.number for version in store.versions(NAME)] == [1, 2, 3]


@pytest.mark.parametrize("place", ["models.add.published", "models.promote.after"])
def test_a_step_that_dies_on_its_way_makes_one_version_and_promotes_it_once(
    tmp_path: Path, pipeline: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, trained = [], save_trained(tmp_path / "one", tmp_path / "corpus.txt", 20)

    def fail_once(name: str) -> None:
        if name == place and not reached:
            reached.append(name)
            raise OSError("the storage is gone for a moment")

    monkeypatch.setattr(failpoints, "reach", fail_once)
    run(tmp_path, pipeline, trained)
    monkeypatch.undo()
    session = Session.open(load_config(tmp_path / "pipeline.yaml"), tmp_path)
    plan = session.plan(Selection(only=frozenset({"base.promote"})))
    runner.run(session.steps, plan, session.context(LocalCluster()), session.journal)
    assert reached == [place]
    assert (facts_of(session)["outcome"], facts_of(session)["model"]) == ("promoted", f"{NAME}@1")
    store = ModelStore(session.paths.storage)
    assert [entry["version"] for entry in store.log(NAME)] == [1]
    assert len(store.versions(NAME)) == 1


def test_a_candidate_waits_for_a_person(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["pretrain"]["promote"] = {"approve": "manual"}
    session, _ = run(
        tmp_path, pipeline, save_trained(tmp_path / "one", tmp_path / "corpus.txt", 20)
    )
    store = ModelStore(session.paths.storage)
    assert facts_of(session)["outcome"] == f"waits for pretune models promote {NAME}@candidate"
    assert (store.champion(NAME), store.candidate(NAME)) == (None, Version(NAME, 1))
    storage = ("--storage", str(session.paths.storage.root))
    answer = CliRunner().invoke(app, ["models", "promote", f"{NAME}@candidate", *storage])
    assert answer.exit_code == 0, answer.output
    listed = CliRunner().invoke(app, ["models", "list", "--json", *storage])
    (row,) = json.loads(listed.output)
    assert (row["model"], row["champion"], row["metric"]) == (NAME, 1, "bits_per_byte")
    assert row["score"] == round(facts_of(session)["score"], 4)
    asked = CliRunner().invoke(app, ["predict", NAME, "--text", "red", *storage])
    assert asked.exit_code != 0
    assert "a pretrained model, which labels nothing" in asked.output + str(asked.exception)


def test_what_is_read_is_part_of_what_makes_a_version(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    base = save_trained(tmp_path / "one", tmp_path / "corpus.txt", 20)
    session, _ = run(tmp_path, pipeline, base)
    pipeline["pretrain"]["promote"] = {"documents": 9}
    session = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
    plan = session.plan(Selection(only=frozenset({"base.losses", "base.promote"})))
    runner.run(session.steps, plan, session.context(LocalCluster()), session.journal)
    facts = facts_of(session)
    assert (facts["model"], facts["promoted"]) == (f"{NAME}@2", False)
    champion = facts["compared"]["champion"]
    assert (champion["model"], champion["rows"], champion["value"]) == (f"{NAME}@1", 9, 0.0)


def test_a_version_of_a_store_can_be_taken_in_and_is_left_as_it_was(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    base = save_trained(tmp_path / "one", tmp_path / "corpus.txt", 20)
    (base / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    session, _ = run(tmp_path, pipeline, base)
    store = ModelStore(session.paths.storage)
    folder = store.verified(store.resolve(NAME))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'license: "mit"' in card
    assert "may have read these" in card
    store.pull(store.resolve(NAME), tmp_path / "pulled")
    pipeline["pretrain"]["seed"] = 1
    session, states = run(tmp_path, pipeline, tmp_path / "pulled")
    assert states["base.promote"] is State.DONE
    step = next(step for step in session.steps if step.name == "pretrain")
    record = session.artifacts.find(step)
    assert record is not None
    session.artifacts.verified(record)  # nothing was written into it
    assert store.damage(Version(NAME, 2)) is None
    listed = json.loads((store.verified(Version(NAME, 2)) / "MANIFEST.json").read_text())
    assert "MANIFEST.json" not in listed["files"]
    assert not list(session.paths.storage.path("artifacts").glob("promote_base/*/*/work/model"))


def test_without_held_out_documents_the_version_says_so(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    pipeline["corpus"]["validation_fraction"] = 0.0
    base = save_trained(tmp_path / "one", tmp_path / "corpus.txt", 1)
    session, states = run(tmp_path, pipeline, base)
    assert states["base.promote"] is State.DONE
    facts = facts_of(session)
    assert "no document was held out" in facts["reason"]
    assert facts["compared"] == {}
    page = render("tiny", [], {}, {"base.promote": facts})
    assert "no document was held out" in page
    store = ModelStore(session.paths.storage)
    assert store.facts(store.resolve(f"{NAME}@1"))["scores"] == {}


def test_a_base_is_made_again_by_its_pretraining(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    base = save_trained(tmp_path / "one", tmp_path / "corpus.txt", 20)
    session, _ = run(tmp_path, pipeline, base)
    store = ModelStore(session.paths.storage)
    origin = Origin.of(store, store.resolve(NAME))
    assert "confidence: 0.95" in origin.as_yaml()
    replay = Replay.prepare(origin, tmp_path, str(tmp_path / "again"))
    assert replay.selection.only == {"corpus", "tokenizer", "tokens", "pretrain"}
    adopt(replay.step, base, replay.opened.artifacts, "run", force=False)
    assert replay.is_equal()
    other = save_trained(tmp_path / "other", tmp_path / "corpus.txt", 1)
    adopt(replay.step, other, replay.opened.artifacts, "run", force=True)
    assert not replay.is_equal()


def test_a_damaged_document_is_found_before_it_is_read_and_others_are_not_looked_at(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    base = save_trained(tmp_path / "one", tmp_path / "corpus.txt", 1)
    session, _ = run(tmp_path, pipeline, base)
    (corpus,) = session.paths.storage.path("artifacts").glob("corpus/*/*/output")

    def again() -> State:
        selection = Selection(only=frozenset({"base.losses"}), force=frozenset({"base.losses"}))
        plan = session.plan(selection)
        result = runner.run(session.steps, plan, session.context(LocalCluster()), session.journal)
        return result.states["base.losses"]

    for path in corpus.glob("train-*.parquet"):
        path.write_bytes(b"damaged")
    assert again() is State.DONE
    shard = next(corpus.glob("validation-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert again() is State.FAILED


def test_with_null_there_is_no_such_model(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["pretrain"]["promote"] = None
    session = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
    assert not {step.name for step in session.steps} & {"base.losses", "base.promote"}


def test_no_task_is_called_as_the_base_is(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["tasks"]["base"] = pipeline["tasks"].pop("tone")
    with pytest.raises(ConfigError, match=r"tiny\.base is what a pretrained model is called"):
        load_config(write_pipeline(tmp_path, pipeline))


def test_the_rule_of_promotion_changes_no_training(
    tmp_path: Path, pipeline: dict[str, Any]
) -> None:
    def fingerprints() -> dict[str, str]:
        session = Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)
        return {step.name: step.fingerprint for step in session.steps}

    before = fingerprints()
    pipeline["pretrain"]["promote"] = {"confidence": 0.9}
    other_rule = fingerprints()
    pipeline["pretrain"]["promote"] = {"documents": 10}
    other_documents = fingerprints()
    summaries = {"report", "track"}
    assert {n for n in before if before[n] != other_rule[n]} == {"base.promote", *summaries}
    changed = {n for n in before if before[n] != other_documents[n]}
    assert changed == {"base.losses", "base.promote", *summaries}
