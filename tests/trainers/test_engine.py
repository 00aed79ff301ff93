"""The plain engine: one process, in plain torch."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import optim
from trainers.engine import PlainEngine, Ranks
from trainers.segments import Batch

ROWS = 4


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def engine(seed: int = 0) -> PlainEngine:
    module = network(seed)
    optimizer = optim.adamw(module, learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    return PlainEngine(module, optimizer, loss, gradient_clipping=0.0, device=torch.device("cpu"))


def descent(clipping: float) -> PlainEngine:
    """Plain gradient descent: unlike AdamW it shows how large a gradient is."""
    module = network()
    groups = [{"params": list(module.parameters()), "scale": 50.0}]
    return PlainEngine(
        module,
        torch.optim.SGD(groups, lr=1.0),
        loss,
        gradient_clipping=clipping,
        device=torch.device("cpu"),
    )


def loss(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(batch["x"]), batch["y"])


def rows(step: int, size: int) -> list[Batch]:
    """The rows of a step in micro-batches of `size`."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 6, generator=generator)
    y = torch.randint(0, 3, (ROWS,), generator=generator)
    parts: Sequence[tuple[Tensor, Tensor]] = list(zip(x.split(size), y.split(size), strict=True))
    return [{"x": part_x, "y": part_y} for part_x, part_y in parts]


def run(trained: PlainEngine, steps: range, size: int) -> list[float]:
    losses = []
    for step in steps:
        trained.set_learning_rate(0.01 / (1 + step))
        losses.append(float(trained.step(rows(step, size)).loss))
    return losses


@pytest.mark.parametrize("size", [2, 1])
@pytest.mark.parametrize("clipping", [0.0, 0.1])
def test_micro_batches_add_up_to_the_whole_batch(size: int, clipping: float) -> None:
    whole, parts = descent(clipping), descent(clipping)
    assert run(parts, range(5), size) == pytest.approx(run(whole, range(5), ROWS), abs=1e-6)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(parts.weights()[name], weight, atol=1e-6, rtol=0)


def test_saved_engine_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    whole, first, second = engine(), engine(), engine(seed=9)
    expected = run(whole, range(10), 2)
    run(first, range(5), 2)
    first.save(tmp_path)
    second.load(tmp_path)
    assert run(second, range(5, 10), 2) == expected[5:]
    pairs = zip(whole.weights().values(), second.weights().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_groups_learn_at_their_share_of_the_rate() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    groups = [
        {"params": list(module[0].parameters()), "scale": 0.0},
        {"params": list(module[2].parameters()), "scale": 1.0},
    ]
    trained = PlainEngine(
        module,
        torch.optim.SGD(groups, lr=1.0),
        loss,
        gradient_clipping=0.0,
        device=torch.device("cpu"),
    )
    before = {name: weight.clone() for name, weight in trained.weights().items()}
    run(trained, range(1), ROWS)
    same = {name for name, weight in trained.weights().items() if torch.equal(weight, before[name])}
    assert same == {"0.weight", "0.bias"}


def test_gradient_is_clipped_to_the_stated_norm() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    groups = [{"params": list(module.parameters()), "scale": 1.0}]
    trained = PlainEngine(
        module,
        torch.optim.SGD(groups, lr=1.0),
        loss,
        gradient_clipping=0.01,
        device=torch.device("cpu"),
    )
    before = torch.cat([weight.flatten().clone() for weight in trained.weights().values()])
    trained.set_learning_rate(1.0)
    trained.step(rows(0, ROWS))
    after = torch.cat([weight.flatten() for weight in trained.weights().values()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Ranks(5, 8, 1)),
    ],
)
def test_ranks_are_those_of_torchrun(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Ranks
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == expected
