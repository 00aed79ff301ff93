import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from trainers.pretrain_config import ZeroConfig
from trainers.sizes import NetworkSize, memory_per_rank
from trainers.task_config import SplitConfig, TaskConfig, TaskDataConfig
from workflows.config import load_config
from workflows.drafts import STAGE_VERSIONS
from workflows.needs import describe, needs
from workflows.outside import OutsideData
from workflows.pipeline import FinalSpec, PretrainSpec, build_steps
from workflows.task_section import ControlsConfig, FinalConfig

DEMO = Path(__file__).parents[2] / "examples" / "demo.yaml"

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PARAMETERS = 2 * 512 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
NETWORK = NetworkSize(PARAMETERS, table=512 * 32, is_tied=False)
PRETRAIN: dict[str, Any] = {
    "sequence_length": 64,
    "tokens": 5200,
    "global_batch_tokens": 256,
    "learning_rate": 1e-3,
}


def pretrain_spec(model: dict[str, Any] | None = None, **changes: Any) -> PretrainSpec:
    network = model or {"architecture": "llama", "config": CONFIG}
    return PretrainSpec.model_validate(
        {"model": network, "pretrain": PRETRAIN | changes, "weights": [1.0]}
    )


def cluster(**sections: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(sections)


def final_spec(
    top: int, seeds: int, *, rates: list[float] | None, fractions: list[float] | None = None
) -> FinalSpec:
    controls: dict[str, Any] = {"label_fractions": fractions or []}
    if rates:
        controls |= {"scratch": True, "scratch_learning_rates": rates}
    split = SplitConfig(test=0.2, validation=0.2)
    return FinalSpec(
        task=TaskConfig(
            type="classification",
            data=TaskDataConfig(path="rows.csv", format="csv", split=split),
            metric="accuracy",
        ),
        final=FinalConfig(top=top, seeds=seeds),
        controls=ControlsConfig.model_validate(controls),
    )


def test_pretraining_needs_its_gang_and_tells_its_work() -> None:
    found = needs("pretrain", pretrain_spec(), cluster(pretrain={"workers": 2}), vocab_size=512)
    memory = memory_per_rank(NETWORK, ranks=2, precision="fp32", zero=ZeroConfig())
    assert found == {
        "workers": 2,
        "cpus": 1,
        "gpus": 0.0,
        "precision": "fp32",
        "parameters": PARAMETERS,
        "memory_per_rank_bytes": memory.total,
        "optimizer_steps": 20,
        "sequences": 80,
        "tokens": 5120,
    }


def test_gang_whose_size_may_change_tells_the_range_and_the_most_memory() -> None:
    execution = cluster(pretrain={"workers": {"min": 1, "max": 4}})
    found = needs("pretrain", pretrain_spec(), execution, vocab_size=512)
    most = memory_per_rank(NETWORK, zero=ZeroConfig(stage=1), ranks=1, precision="fp32").total
    least = memory_per_rank(NETWORK, zero=ZeroConfig(stage=1), ranks=4, precision="fp32").total
    assert (found["least_workers"], found["workers"]) == (1, 4)
    assert found["memory_per_rank_bytes"] == least
    assert found["most_memory_per_rank_bytes"] == most
    told = describe(found)
    assert told.startswith("1 to 4 workers x 1 CPU, ")
    assert "with the fewest workers)" in told


@pytest.mark.parametrize(
    ("precision", "gpus", "expected"),
    [
        ("auto", 0, "fp32"),
        ("auto", 1, "bf16"),
        ("auto", 0.5, "bf16"),
        ("fp32", 1, "fp32"),
        ("bf16", 0, "bf16"),
    ],
)
def test_memory_is_of_the_precision_that_training_will_choose(
    precision: Any, gpus: float, expected: Any
) -> None:
    execution = cluster(pretrain={"workers": 4, "gpus": gpus})
    spec = pretrain_spec(precision=precision, zero={"stage": 3})
    found = needs("pretrain", spec, execution, vocab_size=512)
    memory = memory_per_rank(NETWORK, ranks=4, precision=expected, zero=ZeroConfig(stage=3))
    assert (found["precision"], found["memory_per_rank_bytes"]) == (expected, memory.total)


@pytest.mark.parametrize(
    ("model", "vocab_size"),
    [(None, None), ({"from": "folder"}, 512), ({"architecture": "opt", "config": CONFIG}, 512)],
)
def test_size_that_is_not_known_is_left_out(
    model: dict[str, Any] | None, vocab_size: int | None
) -> None:
    found = needs("pretrain", pretrain_spec(model), cluster(), vocab_size=vocab_size)
    assert not {"parameters", "memory_per_rank_bytes"} & set(found)
    assert describe(found) == "1 worker x 1 CPU, 20 steps, 5.1 K tokens"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (final_spec(1, 1, rates=None), 1),
        (final_spec(2, 3, rates=None), 6),
        (final_spec(1, 1, rates=[1.0]), 2),
        (final_spec(1, 3, rates=[0.5, 1.0, 2.0]), 3 + 3 + 2),
        (final_spec(1, 3, rates=None, fractions=[0.1, 1.0]), 3 + 3),
        (final_spec(2, 2, rates=[1.0], fractions=[0.01, 0.1]), 4 + 2 + 4 + 4),
    ],
)
def test_final_counts_the_best_with_each_seed_and_the_control(
    spec: FinalSpec, expected: int
) -> None:
    found = needs("final", spec, cluster(trials={"cpus": 2}), vocab_size=None)
    assert found == {"trainings": expected, "cpus": 2, "gpus": 0.0}


def test_workers_of_each_trial_are_told() -> None:
    found = needs(
        "final", final_spec(1, 2, rates=None), cluster(trials={"workers": 4}), vocab_size=None
    )
    assert found == {"trainings": 2, "ranks": 4, "cpus": 1, "gpus": 0.0}
    assert describe(found) == "2 trainings x 4 workers with 1 CPU"


WITH_OTHER_SECTIONS = {"base", "probe", "branch", "best_probe"}
"""Kinds that the demo has not."""


def test_every_step_of_the_demo_is_described() -> None:
    config = load_config(DEMO)
    nothing = OutsideData(
        corpus={},
        sources=(),
        tokenizer={},
        model={},
        base=None,
        tasks={t: {} for t in config.tasks},
        custom={},
    )
    vocab_size = config.tokenizer.vocab_size
    steps = build_steps(config, nothing)
    found = {s.name: needs(s.kind, s.spec, config.cluster, vocab_size=vocab_size) for s in steps}
    assert {step.kind for step in steps} == set(STAGE_VERSIONS) - WITH_OTHER_SECTIONS
    assert found["sentiment.tune"] == {"trials": 8, "max_epochs": 4, "cpus": 1, "gpus": 0.0}
    assert {name: told for name in found if (told := describe(found[name]))} == {
        "tokens": "sequences of 64 tokens",
        "pretrain": ("2 workers x 1 CPU, 1.0 M parameters, 22 MB a rank, 781 steps, 1.6 M tokens"),
        "sentiment.tune": "8 trials x 1 CPU, at most 4 epochs each",
        "sentiment.final": "14 trainings x 1 CPU",
        "entities.tune": "8 trials x 1 CPU, at most 4 epochs each",
        "entities.final": "2 trainings x 1 CPU",
    }


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ""),
        ({"workers": 1, "cpus": 4, "gpus": 1.0}, "1 worker x 4 CPUs and 1 GPU"),
        ({"trials": 1200, "cpus": 1, "gpus": 0.5}, "1,200 trials x 1 CPU and 0.5 GPU"),
        ({"optimizer_steps": 1}, "1 step"),
        ({"optimizer_steps": 1_234_567}, "1,234,567 steps"),
        ({"parameters": 999}, "999 parameters"),
        ({"parameters": 1_340_000}, "1.3 M parameters"),
        ({"parameters": 9_960_000}, "10 M parameters"),
        ({"parameters": 999_600}, "1.0 M parameters"),
        ({"parameters": 7_500_000_000}, "7.5 B parameters"),
        ({"memory_per_rank_bytes": 640}, "640 B a rank"),
        ({"memory_per_rank_bytes": 21_400_000}, "21 MB a rank"),
        ({"tokens": 3 * 10**15}, "3000 T tokens"),
    ],
)
def test_description_is_short_and_rounded(facts: dict[str, Any], expected: str) -> None:
    assert describe(facts) == expected


def test_needs_load_no_heavy_library() -> None:
    heavy = "{'ray', 'torch', 'transformers', 'deepspeed', 'sklearn'}"
    code = f"import sys, workflows.needs; print({heavy} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"


def test_plan_warns_of_devices_too_small_and_says_what_would_fit() -> None:
    gang = {"workers": 8, "gpus": 1, "device_memory_gb": 24}
    network = {**CONFIG, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
    model = {"architecture": "llama", "config": network}
    spec = pretrain_spec(model, zero={"stage": 0}, precision="fp32")
    line = describe(needs("pretrain", spec, cluster(pretrain=gang), vocab_size=32_000))
    assert "1.7 B parameters" in line
    assert "WARNING: the model states alone take 30 GB a rank" in line
    assert "what would fit: pretrain.zero.stage: 1" in line


def test_plan_does_not_warn_where_it_fits() -> None:
    gang = {"workers": 2, "device_memory_gb": 1}
    found = needs("pretrain", pretrain_spec(), cluster(pretrain=gang), vocab_size=512)
    assert "does_not_fit" not in found
