"""A bare loop in PyTorch on one rank: batches in memory, nothing but what a step needs.

Losses are read after the last step, so that no step waits for a number.
"""

import torch
from bare import build_model, build_optimizer, load_rows, set_learning_rate
from peer import Measurement, Request, parse_arguments
from torch import nn


def main() -> None:
    """Train and print the measurement."""
    torch.set_num_threads(1)
    arguments = parse_arguments(__doc__)
    request, found = Request.read(arguments.shared), Measurement()
    model = build_model(arguments.shared, request)
    optimizer, rows = build_optimizer(model, request), load_rows(arguments.shared)
    model.train()
    losses = []
    for step in range(request.steps):
        set_learning_rate(optimizer, request.learning_rate_at(step))
        loss = model(input_ids=rows[step], labels=rows[step]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), request.clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        found.end_step()
    found.losses = torch.stack(losses).tolist()
    found.tokens = [rows[step].numel() for step in range(request.steps)]
    found.parameters = sum(p.numel() for p in model.parameters())
    found.print_line()


if __name__ == "__main__":
    main()
