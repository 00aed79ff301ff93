"""What the rest of the project may ask of a cluster, whichever it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from cluster.config import GangConfig, SearchConfig, TrialConfig, WorkerConfig
from cluster.space import Point

Metrics = Mapping[str, float]


class WorkerLostError(RuntimeError):
    """The cluster lost the process or node that did the work; doing it again may help."""


class NodeLeavingError(WorkerLostError):
    """A node is about to go, and the work was saved before; it goes on elsewhere."""


class UnreachableError(ConnectionError):
    """There is no cluster at the address that was given."""


class TaskFailedError(RuntimeError):
    """The work's own code raised; doing it again will not help."""

    def __init__(self, error_type: str, cause: str) -> None:
        super().__init__(error_type, cause)
        self.error_type, self.cause = error_type, cause

    def __str__(self) -> str:
        return f"{self.error_type}: {self.cause}"

    @classmethod
    def of(cls, error: BaseException) -> "TaskFailedError":
        """The same failure, told in text, so that it unpickles anywhere."""
        lines = str(error).strip().splitlines() or ["(no message)"]
        return cls(type(error).__name__, lines[0])


class NodeCapacity(NamedTuple):
    """What one node holds."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Capacity:
    """What the cluster holds, node by node: a worker runs on one."""

    nodes: tuple[NodeCapacity, ...]

    @classmethod
    def of(cls, *nodes: tuple[float, float]) -> "Capacity":
        """CPUs and GPUs of each node."""
        return cls(tuple(NodeCapacity(*node) for node in nodes))

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)


@dataclass(frozen=True)
class Outcome:
    """How one piece of work ended: a value, or the error that ended it."""

    value: Any = None
    error: WorkerLostError | TaskFailedError | None = None

    def unwrap(self) -> Any:
        """The value.

        Raises:
            WorkerLostError, TaskFailedError: what ended the work.
        """
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class SearchPlan:
    """What is searched, and how much of it at once."""

    search: SearchConfig
    worker: TrialConfig
    """What one trial is given."""
    name: str
    """Of this search and no other that runs at the same time; the same when it goes on."""
    metric: str
    """Of a trial's metrics, the one to bring as high as possible, or as low."""
    max_epochs: int
    """The longest a trial may train."""
    slots: Callable[[], int]
    """Trials at once; asked again whenever one more could begin."""
    course: Callable[[Mapping[str, Any]], Sequence[Any]]
    """For each epoch of a point, all of the point that its trial's state after that epoch depends
    on; JSON-able. What begins alike is trained once."""
    lower_is_better: bool = False
    """Of the metric."""
    earlier: Sequence["TrialResult"] = ()
    """Of the same search with fewer trials: they are not run again, and are all remembered."""
    may_change: Sequence[str] = ()
    """Hyperparameters that a trial can go on with other values of."""
    first: Sequence[Mapping[str, Any]] = ()
    """Tried first, in so far as the space can take them."""

    def points(self) -> list[Point]:
        """What `grid` and `random` have yet to try, in this order."""
        left = self.search.points(self.first)
        for trial in self.earlier:
            drawn = trial.drawn or trial.hyperparameters
            if drawn in left:
                left.remove(drawn)
        return left[: self.trials]

    @property
    def trials(self) -> int:
        """Number of trials that are yet to be run."""
        return max(0, self.search.trials - len(self.earlier))


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial."""

    trial_id: str
    hyperparameters: dict[str, Any]
    status: Literal["finished", "stopped", "failed", "cut"]
    """`stopped` by the scheduler; `cut` when the search's time was over."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics after each epoch, oldest first."""
    error: str | None = None
    """Why a failed trial failed."""
    changes: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Epochs after which it went on with another point, and which; `hyperparameters` is the first
    then, of the trial it descends from."""
    drawn: dict[str, Any] | None = None
    """The point it began with itself, where that is another."""


class Reporter(Protocol):
    """Where a worker says how far it is."""

    def report(self, metrics: Metrics) -> None:
        """Take metrics. Collective: every rank calls it the same number of times."""

    def is_leaving(self) -> bool:
        """Whether the node of any rank is about to go; then save, and raise `LeavingError`.

        Collective, and the same on all ranks: every rank calls it the same number of times.
        """


class Trial(Protocol):
    """One slot of a search: a process that tries one configuration after another.

    Where a trial has several workers, one of each of them, with torch's process group set up: all
    are called at the same time, and the first one's metrics count. They save to one folder.
    """

    @property
    def is_finished(self) -> bool:
        """Whether the current configuration needs no further epoch."""

    def start(self, hyperparameters: Mapping[str, Any], *, halvings: int = 0) -> None:
        """Begin a new configuration; nothing of the one before may remain.

        `halvings` is told to a trial of several workers: how often one of them has raised an error
        called `OutOfMemoryError` with this configuration.
        """

    def step(self) -> dict[str, float]:
        """Train one epoch; metrics on the validation rows."""

    def save(self, directory: Path) -> None:
        """Write what `load` needs to go on after the current epoch."""

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote; `start` was called with the same configuration."""


class Pending(Protocol):
    """Work under way."""

    def result(self) -> Outcome:
        """Wait for the end."""


class Cluster(Protocol):
    """Processes to run functions in. Functions and arguments must be picklable."""

    def capacity(self) -> Capacity:
        """What the whole cluster holds, in use or not."""

    def expect(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Tell what will be needed soon, so that nodes come; each call replaces what was told."""

    def show(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a number in the cluster's metrics, `pretune_<name>`."""

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        log: Path,
        worker: WorkerConfig | None = None,
    ) -> Pending:
        """Start a function in a process that prints to `log`.

        Without `worker` it holds no CPU: it mostly waits for other work.
        """

    def on_every_node(
        self,
        function: Callable[..., Any],
        *args: Any,
        worker: WorkerConfig | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Outcome]:
        """Run a function once on each live node that can hold `worker`.

        How it ended, by the node's name. Without `worker` it holds no CPU, and runs on all. A node
        that has not answered after `timeout_s` counts as lost.
        """

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """Those of `pending` that ended, after at most `timeout_s` seconds."""

    def cancel(self, pending: Sequence[Pending]) -> None:
        """End work without waiting for it."""

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], worker: WorkerConfig, log: Path
    ) -> list[Any]:
        """`function(item)` for each item, as many at once as fit; values in the items' order.

        Raises:
            TaskFailedError: a function raised.
            WorkerLostError: one item's worker was lost more often than retries allow.
        """

    def map_on_gangs(
        self,
        function: Callable[[Any, int], Any],
        items: Sequence[Any],
        gang: GangConfig,
        *,
        directory: str,
        log: Path,
    ) -> list[Any]:
        """`function(item, halvings)` on every rank of a gang for each item, as many gangs as fit.

        What the first ranks returned, in the items' order. `halvings` is how often a rank raised an
        error called `OutOfMemoryError` for this item: then it is done again. `directory` is a
        folder or URL that every node sees.

        Raises:
            TaskFailedError: a function raised.
            WorkerLostError: one item's gang was lost more often than retries allow.
        """

    def run_gang(
        self,
        function: Callable[[Reporter], None],
        gang_config: GangConfig,
        *,
        name: str,
        directory: str,
        log: Path,
        on_report: Callable[[Metrics], None],
    ) -> None:
        """Run `function` on every rank of a gang, with torch's process group set up around it.

        `directory` is a folder or URL that every node sees. Rank 0's reports reach `on_report`, in
        rank 0's process. A lost worker restarts the whole gang, which is to go on from what it
        saved; with a range of workers, with as many as there is room for. A rank that raises an
        error called `LeavingError`, because `Reporter.is_leaving`, has the gang started again
        elsewhere, which counts as no attempt.

        Raises:
            TaskFailedError: a rank raised.
            WorkerLostError: workers were lost more often than retries allow.
        """

    def run_trials(
        self,
        trial: Callable[[Any], Trial],
        shared: Any,
        plan: SearchPlan,
        *,
        directory: str,
        log: Path,
        on_result: Callable[[str, Metrics], None],
    ) -> list[TrialResult]:
        """Search for the configuration with the best metric.

        `shared` is placed once per node and handed to `trial` in each slot's process. A search that
        was interrupted goes on when `directory` holds its state.
        """
