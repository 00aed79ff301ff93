"""State in files (offload to nvme) on two ranks: the same training, resumed as exactly.

Not of every run of the tests: DeepSpeed compiles its async_io first, ten minutes on two slow cores.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_ranks import run_ranks, weights
from worlds import LLAMA, moved, prepare

from trainers.config import ModelConfig
from trainers.pretrain import PretrainWork

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(1800)]

WIDE = {**LLAMA, "hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 1}
"""A rank's half of a matrix fills the 1 MiB below which DeepSpeed swaps nothing."""

WEIGHTS_IN_FILES = {"zero_optimization": {"offload_param": {"max_in_cpu": 0}}}
PLACES = {
    "optimizer": {"offload_optimizer": "nvme"},
    "both": {"offload_optimizer": "nvme", "offload_parameters": "nvme"},
    "parameters": {"offload_optimizer": "cpu", "offload_parameters": "nvme"},
}


REFUSED = 77
BUILD = f"""
import sys
import torch
from trainers.deepspeed_setup import import_deepspeed, require_runnable
from trainers.errors import DataError
from trainers.pretrain_config import ZeroConfig

cpu = torch.device("cpu")
import_deepspeed(cpu)
try:
    require_runnable(ZeroConfig(stage=3, offload_optimizer="nvme", nvme_path="/"), "fp32", cpu)
except DataError:
    sys.exit({REFUSED})
from deepspeed.ops.op_builder import AsyncIOBuilder
AsyncIOBuilder().load()
"""


@contextmanager
def swap_files_seen_in(disk: Path) -> Iterator[set[str]]:
    """Of what kind they were while this was entered: `optimizer`, `parameters`."""
    kinds: set[str] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            for folder, _, names in os.walk(disk):  # folders may go meanwhile
                if any(name.endswith(".swp") for name in names):
                    kinds.add("optimizer" if "optimizer" in Path(folder).parts else "parameters")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield kinds
    finally:
        is_over.set()
        looking.join()


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where async_io is compiled, once for all, outside the time limits of ranks."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR") or str(tmp_path_factory.mktemp("extensions"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TORCH_EXTENSIONS_DIR": folder,
    }
    built = subprocess.run([sys.executable, "-c", BUILD], env=environment, check=False)
    if built.returncode == REFUSED:
        pytest.skip("offload to nvme is refused here: it needs libaio-dev and a C++ compiler")
    built.check_returncode()
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> PretrainWork:
    return replace(
        prepare(tmp_path_factory.mktemp("nvme")),
        model=ModelConfig(architecture="llama", config=WIDE),
    )


@pytest.fixture(scope="module")
def expected(
    work: PretrainWork, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], dict[str, bytes]]:
    """Losses and weights with all state in memory."""
    folder = tmp_path_factory.mktemp("memory")
    whole = moved(work, folder, zero={"stage": 3, "offload_optimizer": "cpu"})
    return run_ranks(whole, folder), weights(whole)


@pytest.mark.parametrize("place", PLACES)
def test_killed_ranks_with_state_in_files_go_on_to_the_same_weights(
    work: PretrainWork,
    expected: tuple[dict[str, float], dict[str, bytes]],
    extensions: str,
    tmp_path: Path,
    place: str,
) -> None:
    zero = {"stage": 3, "nvme_path": str(tmp_path / "disk"), **PLACES[place]}
    settings: dict[str, Any] = {"zero": zero}
    if "offload_parameters" in zero:
        settings["deepspeed"] = WEIGHTS_IN_FILES
    environment = {"TORCH_EXTENSIONS_DIR": extensions}
    cut = moved(work, tmp_path / "cut", **settings)
    with swap_files_seen_in(tmp_path / "disk") as kinds:
        run_ranks(cut, tmp_path, kill_after=12, **environment)
    assert kinds == {name.removeprefix("offload_") for name in zero if zero[name] == "nvme"}
    rest = replace(
        moved(work, tmp_path / "rest", **settings), earlier_checkpoints=(cut.checkpoints,)
    )
    resumed = run_ranks(rest, tmp_path, **environment)
    assert min(map(int, resumed)) == 11
    assert resumed == {step: expected[0][step] for step in resumed}
    assert weights(rest) == expected[1]
    assert [path for path in (tmp_path / "disk").iterdir() if path.is_dir()] == []


def test_state_in_files_goes_on_with_another_number_of_workers(
    work: PretrainWork,
    expected: tuple[dict[str, float], dict[str, bytes]],
    extensions: str,
    tmp_path: Path,
) -> None:
    zero = {"stage": 3, "nvme_path": str(tmp_path / "disk"), **PLACES["both"]}
    settings: dict[str, Any] = {"zero": zero, "deepspeed": WEIGHTS_IN_FILES}
    environment = {"TORCH_EXTENSIONS_DIR": extensions}
    cut = moved(work, tmp_path / "cut", **settings)
    run_ranks(cut, tmp_path, kill_after=12, number=4, **environment)
    rest = replace(
        moved(work, tmp_path / "rest", **settings), earlier_checkpoints=(cut.checkpoints,)
    )
    resumed = run_ranks(rest, tmp_path, **environment)
    assert min(map(int, resumed)) == 11
    assert resumed == pytest.approx({step: expected[0][step] for step in resumed}, rel=1e-5)


def test_skipped_step_changes_no_weight_in_files(
    work: PretrainWork, extensions: str, tmp_path: Path
) -> None:
    zero = {"stage": 3, "nvme_path": str(tmp_path / "disk"), **PLACES["both"]}
    few = {"tokens": 10 * 8 * 16, "schedule": {"name": "constant"}, "watch": {"window": 10}}
    good = moved(work, tmp_path / "good", **few, zero=zero, deepspeed=WEIGHTS_IN_FILES)
    run_ranks(good, tmp_path, TORCH_EXTENSIONS_DIR=extensions)
    longer = {**few, "tokens": 12 * 8 * 16, "watch": {"window": 10, "sigma": 30.0}}
    leaping = moved(work, tmp_path / "leaping", **longer, zero=zero, deepspeed=WEIGHTS_IN_FILES)
    run_ranks(
        leaping,
        tmp_path,
        poisoned_rank=1,
        poisoned_steps=range(11, 13),
        poison=1000.0,
        TORCH_EXTENSIONS_DIR=extensions,
    )
    assert json.loads((leaping.output / "pretraining.json").read_text())["skipped_steps"] == 2
    assert weights(leaping) == weights(good)
