"""What all tasks together may spend on their searches, shared out before anything runs. Pure."""

from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import model_validator

from cluster.config import POPULATION, SearchConfig
from trainers.config import PositiveFloat, PositiveInt, Schema


class BudgetConfig(Schema):
    """Of all searches together."""

    trials: PositiveInt | None = None
    """Trials of all tasks. Tasks that ask for more together get less each, in proportion."""

    max_hours: PositiveFloat | None = None
    """Hours after which every search ends; all tasks are searched at the same time."""

    floor: PositiveInt = 1
    """Trials that each task is given, and finishes, whatever the others ask for."""

    @model_validator(mode="after")
    def _something_is_limited(self) -> Self:
        if self.trials is None and self.max_hours is None:
            raise ValueError("give trials, or max_hours, or both")
        return self

    def problems(self, searches: Mapping[str, SearchConfig]) -> Iterator[str]:
        """Why the budget does not go with the searches."""
        if self.trials is None:
            return
        least = sum(min(self.floor, search.trials) for search in searches.values())
        if least > self.trials:
            yield (
                f"budget: {len(searches)} tasks with at least {self.floor} trials each need "
                f"{least}; raise budget.trials ({self.trials}) or lower budget.floor"
            )
            return
        for name, share in _shares(self.trials, self.floor, searches).items():
            search = searches[name]
            if search.scheduler == "pbt" and share < POPULATION:
                yield (
                    f"budget.trials: {self.trials} leave {share} trials to tasks.{name}.search; "
                    f"scheduler: pbt needs {POPULATION}: raise it, or budget.floor"
                )
            if search.searcher == "grid" and share < search.trials:
                yield (
                    f"budget.trials: {self.trials} leave {share} of the {search.trials} points "
                    f"that tasks.{name}.search tries (searcher: grid); raise it, or take "
                    "searcher: random"
                )

    def shared(self, searches: Mapping[str, SearchConfig]) -> dict[str, SearchConfig]:
        """The searches as the budget leaves them, by task."""
        shares = {name: search.trials for name, search in searches.items()}
        if self.trials is not None:
            shares = _shares(self.trials, self.floor, searches)
        return {
            name: search.model_copy(
                update={"trials": shares[name], **self._time(search, shares[name])}
            )
            for name, search in searches.items()
        }

    def _time(self, search: SearchConfig, trials: int) -> dict[str, float]:
        """When a search ends, and what its end waits for."""
        if self.max_hours is None:
            return {}
        return {
            "max_hours": min(self.max_hours, search.max_hours or self.max_hours),
            "least_trials": max(search.least_trials, min(self.floor, trials)),
        }


def _shares(trials: int, floor: int, searches: Mapping[str, SearchConfig]) -> dict[str, int]:
    """Trials of each task: the floor first, the rest in proportion to what each still asks for."""
    given = {name: min(floor, search.trials) for name, search in searches.items()}
    asked = {name: search.trials - given[name] for name, search in searches.items()}
    left, total = trials - sum(given.values()), sum(asked.values())
    if left >= total:
        return {name: search.trials for name, search in searches.items()}
    exact = {name: left * asked[name] / total for name in searches}
    shares = {name: given[name] + int(exact[name]) for name in searches}
    # What rounding down left goes to those it took most from; of equals, to the first.
    by_loss = sorted(searches, key=lambda name: int(exact[name]) - exact[name])
    for name in by_loss[: trials - sum(shares.values())]:
        shares[name] += 1
    return shares
