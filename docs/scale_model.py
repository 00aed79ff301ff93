"""How costs grow from a laptop to 10,000 GPUs, on paper: the tables of `docs/scale.md`.

`python docs/scale_model.py` writes them into the page; a test sees that they are its. Nothing here
was measured on such machines: figures that were measured name their source.
"""

import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.capacity import poll_s
from trainers.corpus import slices_for

PAGE = Path(__file__).with_name("scale.md")

GPU_HOURS_PER_FAILURE = 50_700
"""Of 16,384 H100 in 54 days: 419 unexpected interruptions. Source: Llama 3, arXiv:2407.21783."""
PEAK_FLOPS = {"gpu": 989e12, "cpu": 0.12e12}
"""Of one device: an H100 in bf16 by its datasheet; both cores of our small machine in fp32."""
UTILISATION = 0.4
"""Plain ZeRO-3 on 8 to 512 H100 reaches 0.42 to 0.46. Source: llm-foundry's benchmarks."""
COPY_BYTES_PER_S, STORE_BYTES_PER_S = 2e9, 0.2e9
"""Of one rank: to its host's memory, and from there to shared storage. Assumed."""
DETECTION_S = 55.0
"""Until Ray calls a node dead at the latest, in Ray 2.60; a process at once."""
START_S = 60.0
"""Of a gang: processes, imports, rendezvous. Assumed for GPUs; 25 s for two workers on a laptop."""

STATE_BYTES = 14
"""Of a parameter in a checkpoint: weights in bf16, Adam's moments and weights in fp32."""
TEXT_BYTES, STORED_BYTES = 4, 2
"""Of a token: as text, and packed (vocabularies up to 65,536)."""
DOCUMENT_TOKENS = 800
"""Of one document of the web. Assumed."""
RECORD_BYTES = 120
"""Of one file in the record of a step."""
TRIAL_BYTES = 45_000
"""Of one trial in the driver's memory, as Ray Tune keeps it; measured, benchmarks/."""
TRIAL_S = 0.011
"""Of the driver for one trial; measured, benchmarks/."""
MIRROR_S = 0.02
"""Of MLflow's server for one run of a trial. Assumed."""


_GIB = 1 << 30


class Case(NamedTuple):
    """A size of the whole thing."""

    name: str
    device: str
    devices: int
    parameters: float
    tokens: float
    trials: int


CASES = (
    Case("laptop", "cpu", 1, 1e6, 2e7, 16),
    Case("one node", "gpu", 8, 1e9, 2e10, 64),
    Case("8 nodes", "gpu", 64, 7e9, 1.4e11, 1_000),
    Case("1,024 GPUs", "gpu", 1024, 7e10, 1.4e12, 10_000),
    Case("10,000 GPUs", "gpu", 10_000, 4e11, 1e13, 100_000),
)


def training_s(case: Case) -> float:
    """Seconds of training without any trouble: 6 operations a parameter and token."""
    speed = case.devices * PEAK_FLOPS[case.device] * UTILISATION
    return 6 * case.parameters * case.tokens / speed


def failure_s(case: Case) -> float:
    """Mean seconds between failures that end the gang."""
    return GPU_HOURS_PER_FAILURE * 3600 / case.devices


def stall_s(case: Case) -> float:
    """Seconds that a checkpoint keeps training waiting: each rank copies its share."""
    return STATE_BYTES * case.parameters / case.devices / COPY_BYTES_PER_S


def durable_s(case: Case) -> float:
    """Seconds until it is in the storage, in the background."""
    return STATE_BYTES * case.parameters / case.devices / STORE_BYTES_PER_S


def recovery_s(case: Case) -> float:
    """Seconds from a failure to the next step: found, started again, read."""
    return DETECTION_S + START_S + durable_s(case)


def interval_s(case: Case) -> float:
    """Seconds between checkpoints that waste least; the last must be durable before the next.

    Source: Young 1974, doi:10.1145/361147.361115.
    """
    return max(math.sqrt(2 * stall_s(case) * failure_s(case)), durable_s(case))


def goodput(case: Case) -> float:
    """Share of the time that trains, to first order.

    Lost are the stalls, half an interval and what was not durable yet at each failure, and the
    recovery. Source: Daly 2006, doi:10.1016/j.future.2004.11.016.
    """
    every, failure = interval_s(case), failure_s(case)
    lost = every / 2 + durable_s(case) + recovery_s(case)
    return 1 / (1 + stall_s(case) / every) * max(0.0, 1 - lost / failure)


def simulated_goodput(case: Case, seed: int = 0, failures: int = 4000) -> float:
    """The same, by drawing failures: what the formula leaves out is in it."""
    draw = random.Random(seed)
    every, cost = interval_s(case), interval_s(case) + stall_s(case)
    kept = elapsed = 0.0
    for _ in range(failures):
        alive = draw.expovariate(1 / failure_s(case))
        whole = max(0, math.floor((alive - durable_s(case)) / cost))  # durable checkpoints
        kept += whole * every
        elapsed += alive + recovery_s(case)
    return kept / elapsed


def shards(case: Case, shard_bytes: int = 32 << 20) -> int:
    """Of the corpus."""
    return math.ceil(case.tokens * TEXT_BYTES / shard_bytes)


def opened(case: Case, shard_bytes: int = 32 << 20) -> int:
    """Files of keys: each slice of the keys is looked for in each shard."""
    return slices_for(int(case.tokens / DOCUMENT_TOKENS)) * shards(case, shard_bytes)


def polls_per_s(case: Case) -> float:
    """Questions that Ray Train's controller asks of its workers (`cluster.capacity.poll_s`)."""
    return case.devices / poll_s(case.devices)


Row = tuple[str, Callable[[Case], str]]

TRAINING: Sequence[Row] = (
    ("parameters, tokens", lambda c: f"{_si(c.parameters)}, {_si(c.tokens)}"),
    ("training, undisturbed", lambda c: _time(training_s(c))),
    ("a checkpoint", lambda c: _bytes(STATE_BYTES * c.parameters)),
    ("its stall; until durable", lambda c: f"{_time(stall_s(c))}; {_time(durable_s(c))}"),
    ("a failure every", lambda c: _time(failure_s(c))),
    ("best time between checkpoints", lambda c: _time(interval_s(c))),
    ("goodput, by formula", lambda c: f"{goodput(c):.1%}"),
    ("goodput, simulated", lambda c: f"{simulated_goodput(c):.1%}"),
    ("questions a second of the gang's controller", lambda c: f"{polls_per_s(c):,.0f}"),
)
DATA: Sequence[Row] = (
    ("corpus as text", lambda c: _bytes(c.tokens * TEXT_BYTES)),
    ("packed", lambda c: _bytes(c.tokens * STORED_BYTES)),
    ("shards of 32 MiB", lambda c: f"{shards(c):,}"),
    ("the record of such a step", lambda c: _bytes(shards(c) * RECORD_BYTES)),
    ("files opened to find duplicates", lambda c: f"{opened(c):,}"),
    (
        "record, files with shards of 1 GiB",
        lambda c: f"{_bytes(shards(c, _GIB) * RECORD_BYTES)}, {opened(c, _GIB):,}",
    ),
)
SEARCH: Sequence[Row] = (
    ("trials", lambda c: f"{c.trials:,}"),
    ("memory of the driver", lambda c: _bytes(c.trials * TRIAL_BYTES)),
    ("time of the driver", lambda c: _time(c.trials * TRIAL_S)),
    ("time of MLflow's server", lambda c: _time(c.trials * MIRROR_S)),
)
TABLES = {"training": TRAINING, "data": DATA, "search": SEARCH}


def table(rows: Sequence[Row]) -> str:
    """One column a case."""
    head = ["| |", *(f" {case.name} |" for case in CASES)]
    lines = ["".join(head), "|" + "---|" * (len(CASES) + 1)]
    lines += [f"| {name} | " + " | ".join(map(tell, CASES)) + " |" for name, tell in rows]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
        made = f"{begin}{table(rows)}\n{end}"
        text, found = pattern.subn(lambda _, made=made: made, text)
        assert found == 1, f"the page has no place for {name}"
    return text


def _si(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def _time(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
