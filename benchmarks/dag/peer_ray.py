"""Bare Ray: no-op tasks on a local Ray with two cores, nothing durable; the floor of the table.

`wide` submits all tasks and waits for them in one `ray.get`. `chain` hands each task the reference
of the one before, so the driver never waits in between: Ray's fastest way. Both workers are
started and used before the clock starts.
"""

import os
import shutil
import tempfile
import time

from peer import Measurement, installed_versions, parse_request

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

NUM_CPUS = 2
WARM_UP_STEPS = 200


@ray.remote
def step(previous: int) -> int:
    """A step that does nothing."""
    return previous + 1


@ray.remote
def start_worker() -> None:
    """Holds one core long enough that the next task starts a worker of its own."""
    time.sleep(0.5)


def run_wide(steps: int) -> int:
    """Run independent steps; the last one's value."""
    return ray.get([step.remote(index) for index in range(steps)])[-1]


def run_chain(steps: int) -> int:
    """Run steps that each take the one before; the last one's value."""
    value = 0
    for _ in range(steps):
        value = step.remote(value)
    return ray.get(value)


def main() -> None:
    """Measure one shape."""
    request = parse_request(__doc__)
    run = run_wide if request.shape == "wide" else run_chain
    temporary = tempfile.mkdtemp(prefix="dag-ray-")  # not below FOLDER: socket paths must be short
    try:
        ray.init(
            address="local",
            num_cpus=NUM_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=temporary,
        )
        ray.get([start_worker.remote() for _ in range(NUM_CPUS)])
        run(WARM_UP_STEPS)
        start = time.perf_counter()
        value = run(request.steps)
        seconds = time.perf_counter() - start
        assert value == request.steps
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    Measurement(
        peer="ray",
        shape=request.shape,
        steps=request.steps,
        seconds=seconds,
        persisted=0,
        recorded_s=None,
        versions=installed_versions(["ray"]),
    ).print_line()


if __name__ == "__main__":
    main()
