"""What a run asks of a cluster that grows: to have nodes when it needs them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster import capacity
from cluster.capacity import Bundle, CapacityError
from cluster.config import ClusterConfig, WorkerConfig
from cluster.interface import Cluster
from workflows.steps import Step

_POLL_S = 2.0
_UNDER_WAY = {"running", "done", "reused"}


@dataclass
class Demand:
    """Of one run. What it asked for it gives back when the run ends."""

    cluster: Cluster
    execution: ClusterConfig
    steps: Sequence[Step]
    own_steps: Mapping[str, WorkerConfig]
    """What the user's own steps are given."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _asked: list[Bundle] = field(default_factory=list)

    def wait(self, tell: Callable[[str], None]) -> None:
        """Return when the cluster holds what the pipeline asks for at the least.

        Raises:
            CapacityError: it does not, and nothing more is waited for.
        """
        config, until = self.execution, self.clock() + self.execution.wait_for_nodes_s
        while True:
            try:
                capacity.check(config, self.cluster.capacity(), self.own_steps)
            except CapacityError as error:
                if self.clock() >= until:
                    raise
                if not self._asked:
                    tell(f"waiting {config.wait_for_nodes_s:g} s at most for nodes: {error}")
                self._ask(capacity.largest(config, self.own_steps))
                self.sleep(_POLL_S)
            else:
                self._ask([])
                return

    def look(self, states: Mapping[str, str]) -> None:
        """Have the gang's nodes come while the last of its inputs is computed.

        A gang that has begun holds its nodes itself, and trials ask for theirs one by one.
        """
        for step in self.steps:
            if step.kind == "pretrain" and states.get(step.name) == "waiting":
                inputs = [states.get(ref.name) for ref in step.inputs.values()]
                if all(state in _UNDER_WAY for state in inputs):
                    gang = self.execution.pretrain
                    self._ask(capacity.bundles(gang, gang.most_workers))
                    return
        self._ask([])

    def release(self) -> None:
        """Ask for nothing any more."""
        self._ask([])

    def _ask(self, bundles: list[Bundle]) -> None:
        if bundles != self._asked:
            self.cluster.expect(bundles)
            self._asked = bundles
