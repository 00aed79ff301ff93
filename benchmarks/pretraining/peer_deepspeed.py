"""A bare loop around `deepspeed.initialize`, one process of several.

What was chosen, and why:

- Ranks come from the environment, as `torchrun` sets it, over gloo: DeepSpeed's own launcher would
  look for hosts first, and oneCCL is not among the packages.
- PyTorch's fused AdamW, handed to DeepSpeed, which shards it. DeepSpeed's `DeepSpeedCPUAdam` needs
  a C++ compiler and would be another kernel than pretune's.
- No op of DeepSpeed is compiled, as in pretune: on a CPU it would compile an all-reduce for
  inference. Start-up would be a minute longer for the peer, the first time.
- DeepSpeed's defaults for sizes of buckets and all else.
- Losses stay on their rank until the last step is done: no step pays for a mean over ranks.
"""

import os

from peer import Measurement, Request, leave, parse_arguments

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as in pretune


def main() -> None:
    """Train on this rank; rank 0 prints the measurement."""
    found = Measurement()
    found.mark("interpreter")
    import deepspeed
    import deepspeed.ops
    import torch
    from bare import build_model, build_optimizer, load_rows, set_learning_rate

    found.mark("imports")
    deepspeed.ops.__compatible_ops__ = {}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    found.mark("process group")
    arguments = parse_arguments(__doc__)
    request = Request.read(arguments.shared)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = request.batch // world_size
    model = build_model(arguments.shared, request)
    found.parameters = sum(p.numel() for p in model.parameters())  # ZeRO-3 empties them
    engine, optimizer, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, request),
        config={
            "train_micro_batch_size_per_gpu": share,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": request.clipping,
            "zero_optimization": {"stage": arguments.stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    found.mark("model and engine")
    rows = load_rows(arguments.shared)[:, rank * share : (rank + 1) * share]
    engine.train()
    losses = []
    for step in range(request.steps):
        set_learning_rate(optimizer, request.learning_rate_at(step))
        loss = engine(input_ids=rows[step], labels=rows[step]).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
        found.end_step()
    mean = torch.stack(losses)
    torch.distributed.all_reduce(mean)
    found.losses = (mean / world_size).tolist()
    found.tokens = [rows[step].numel() * world_size for step in range(request.steps)]
    if rank == 0:
        found.print_line()
    torch.distributed.barrier()
    leave()


if __name__ == "__main__":
    main()
