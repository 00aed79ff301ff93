"""What a rank really holds, against what `sizes` says."""

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.pretrain_config import Precision, ZeroConfig
from trainers.sizes import memory_per_rank

pytestmark = pytest.mark.slow

HERE = Path(__file__)
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 8,
    "tie_word_embeddings": True,
    "use_cache": False,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_estimate_is_within_a_tenth_of_what_a_rank_holds(stage: int, precision: Precision) -> None:
    found = measured(stage, precision)
    zero = ZeroConfig.model_validate({"stage": stage})
    told = memory_per_rank(found["parameters"], ranks=2, precision=precision, zero=zero)
    assert told.total == pytest.approx(found["peak"], rel=0.1)


def test_zero_3_builds_no_more_than_its_share_on_a_rank() -> None:
    found = measured(3, "fp32")
    assert found["built"] == pytest.approx(4 * found["parameters"] / 2, rel=0.01)


def measured(stage: int, precision: str) -> dict[str, int]:
    """Bytes on rank 0 of two: once the model is built, and the most at the end of a backward."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[2]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, str(HERE), str(stage), precision]
    ranks = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    answer: dict[str, int] = json.loads(outputs[0].splitlines()[-1])
    return answer


def live_bytes() -> int:
    """Of all storages that tensors of this process stand on."""
    import torch

    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    found += [each.grad for each in found if each.is_leaf and each.grad is not None]
    storages = [each.untyped_storage() for each in found if each.device.type == "cpu"]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def main() -> None:
    """One rank: two steps of two micro-batches."""
    import math

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainers import optim, segments
    from trainers.deepspeed_engine import DeepSpeedEngine
    from trainers.deepspeed_setup import ShardedConstruction

    stage, precision = int(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group("gloo")
    zero, cpu = ZeroConfig.model_validate({"stage": stage}), torch.device("cpu")
    network = AutoConfig.for_model("llama", **LLAMA)
    before = live_bytes()
    construction = ShardedConstruction(zero, precision, cpu)

    def build() -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_config(network)

    module = construction.new(build) if stage == 3 else build()
    built = live_bytes() - before
    engine = DeepSpeedEngine(
        module,
        optim.adamw(module, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95)),
        segments.language_model_loss,
        zero=zero,
        micro_batch_size=1,
        micro_batches=2,
        precision=precision,
        gradient_clipping=1.0,
        device=cpu,
    )
    ids = torch.arange(8)[None]
    peak, backward = 0, engine._engine.backward

    def measuring(loss: torch.Tensor) -> None:
        nonlocal peak
        backward(loss)
        peak = max(peak, live_bytes() - before)

    engine._engine.backward = measuring
    for _ in range(2):
        engine.step([{"input_ids": ids, "labels": ids}] * 2)
    parameters = sum(math.prod(optim.whole_shape(p)) for p in module.parameters())
    print(json.dumps({"parameters": parameters, "built": built, "peak": peak}), flush=True)
    torch.distributed.barrier()
    os._exit(0)  # gloo was seen to abort a rank whose peer is gone first


if __name__ == "__main__":
    main()
