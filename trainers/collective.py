"""How fast ranks sum a tensor: what every optimizer step of several workers waits for."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

_REPEATS = 5
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class AllReduce:
    """What was measured on the first rank."""

    backend: str
    """`nccl` between GPUs, `gloo` between CPUs."""
    places: tuple[str, ...]
    """Names of the ranks' nodes, in their order."""
    size_bytes: int
    seconds: float
    """Of one all-reduce, the median."""

    @property
    def bus_bytes_per_s(self) -> float:
        """Bytes per second through each rank's link, whatever the number of ranks.

        Source: nccl-tests, doc/PERFORMANCE.md: the algorithm's bandwidth times 2 (n - 1) / n.
        """
        ranks = len(self.places)
        return self.size_bytes / self.seconds * 2 * (ranks - 1) / ranks


def measure(
    size_bytes: int,
    meet: Callable[[int], tuple[int, tuple[str, ...], str, int]],
    *,
    is_on_gpu: bool,
) -> AllReduce:
    """Sum so many bytes over all ranks. Collective: every rank calls it, in no process group.

    Args:
        size_bytes: of the tensor.
        meet: told a port where this process listens, gives this rank, the names of all ranks, and
            the host and port of the first.
        is_on_gpu: NCCL on the first GPU that this process sees; else gloo.
    """
    # What was measured is read where torch is not needed, and its import takes seconds.
    import torch
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    patience = timedelta(seconds=_PATIENCE_S)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    rank, names, host, port = meet(store.port)
    if rank > 0:
        store = TCPStore(host, port, is_master=False, timeout=patience)
    backend = "nccl" if is_on_gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=len(names), timeout=patience
    )
    try:
        tensor = torch.zeros(size_bytes // 4, device="cuda" if is_on_gpu else "cpu")
        taken: list[float] = []
        for _ in range(1 + _REPEATS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            if is_on_gpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        dist.barrier()  # the store is the first rank's
    finally:
        dist.destroy_process_group()
    # The first one opens connections.
    return AllReduce(backend, names, size_bytes, statistics.median(taken[1:]))
