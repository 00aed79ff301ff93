"""What DeepSpeed cannot do on this machine is refused before training begins."""

import os
import sys
from pathlib import Path

import pytest
import torch

from trainers.deepspeed_setup import import_deepspeed, require_runnable
from trainers.errors import DataError
from trainers.pretrain_config import ZeroConfig

CPU = torch.device("cpu")
NVME = ZeroConfig(stage=3, offload_optimizer="nvme", nvme_path="/disk")


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its import sets in the environment would reach other tests."""
    for name, value in {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "0"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    import_deepspeed(CPU)


def let_async_io_be(is_compatible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: is_compatible)


def test_offload_to_nvme_without_libaio_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_async_io_be(False, monkeypatch)
    with pytest.raises(DataError, match=r"libaio-dev.*offload_parameters to cpu or none"):
        require_runnable(NVME, "fp32", CPU)
    require_runnable(ZeroConfig(stage=3, offload_optimizer="cpu"), "fp32", CPU)


def test_ninja_beside_python_is_found_by_what_is_built_for_nvme(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_async_io_be(True, monkeypatch)
    monkeypatch.setenv("PATH", "/usr/bin")
    for _ in range(2):
        require_runnable(NVME, "fp32", CPU)
        assert os.environ["PATH"].split(os.pathsep) == [
            "/usr/bin",
            str(Path(sys.executable).parent),
        ]


def test_fp16_is_refused_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(DataError, match=r"pretrain\.precision: fp16 does not run on this cpu"):
        require_runnable(ZeroConfig(), "fp16", CPU)
