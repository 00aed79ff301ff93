"""How a run ended, for the program and for a person."""

from dataclasses import dataclass, field

from workflows.planning import AVAILABLE, State


@dataclass(frozen=True)
class Failure:
    """A step that failed, for a person."""

    step: str
    cause: str
    log: str
    """Path or URL."""
    is_input_error: bool
    kept: str = ""
    """What of the step itself a further run goes on from, as the end of a sentence."""


@dataclass
class RunResult:
    """How a run ended."""

    states: dict[str, State]
    failures: list[Failure] = field(default_factory=list)
    is_stopped: bool = False
    stopped: dict[str, str] = field(default_factory=dict)
    """What steps said that were under way when the run was stopped, by name."""
    needs_new_name: bool = False
    """It was stopped by its name, and does not go on under it."""

    def told(self) -> list[str]:
        """What failed or was stopped, in lines for a person."""
        if self.is_stopped:
            lines = [f"{name}: {said}" for name, said in self.stopped.items()]
            how = "give another --run-id" if self.needs_new_name else "run the same command"
            return [*lines, f"stopped; what was finished is kept, {how} to go on"]
        done = sum(state in AVAILABLE for state in self.states.values())
        return [
            line
            for failure in self.failures
            for line in (
                f"failed: {failure.step}: {failure.cause}",
                f"        log: {failure.log}",
                f"        kept: {done} finished steps{failure.kept}",
                "        next: mend the cause and run the same command again",
            )
        ]
