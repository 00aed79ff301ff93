"""The step that does nothing, as a user would write it."""

import time

from workflows.custom import CustomStep


def step(given: CustomStep) -> dict[str, int]:
    """Hands on a number, as the peers' steps do."""
    before = sum(facts["value"] for facts in given.facts.values())
    return {"value": before + 1}


def start_worker(given: CustomStep) -> None:  # noqa: ARG001 -- every step is given it
    """Holds one core long enough that the next step starts a worker of its own."""
    time.sleep(0.5)
