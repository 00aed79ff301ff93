"""What the numbers of a benchmark depend on; nothing that names the machine."""

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

FSYNC_REPEATS = 200


def measure_fsync_ms(folder: Path) -> float:
    """Median time to append 4 KiB to a file in `folder` and sync it to the disk."""
    times_s = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(FSYNC_REPEATS):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times_s.append(time.perf_counter() - start)
    return statistics.median(times_s) * 1000


def read_cpu_model() -> str:
    """The processor's name, as Linux has it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_filesystem(folder: Path) -> str:
    """The type of the filesystem that holds `folder`, as Linux has it."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return "unknown"
    fields = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    holding = [(len(f[1]), f[2]) for f in fields if folder.resolve().is_relative_to(f[1])]
    return max(holding)[1] if holding else "unknown"


def describe_machine(folder: Path) -> list[str]:
    """What the numbers depend on, as Markdown; nothing that names this machine."""
    fsync_ms = measure_fsync_ms(folder)
    ram_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"- CPU: {read_cpu_model()}, {os.cpu_count()} cores",
        f"- RAM: {ram_gib:.0f} GiB",
        f"- Kernel: {platform.system()} {platform.release()}",
        f"- Filesystem: {read_filesystem(folder)}",
        f"- 4 KiB written and synced in {fsync_ms:.2f} ms (median of {FSYNC_REPEATS})",
    ]
