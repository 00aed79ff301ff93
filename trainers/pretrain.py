"""Self-supervised training of the base model: what every rank of the gang runs."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from trainers import assembly, checkpoint, loop, model, order, schedules, scratch
from trainers.batches import Cursor, Prefetcher
from trainers.branches import Branches
from trainers.checkpointer import Checkpointer
from trainers.deadline import Deadline
from trainers.engine import Ranks, StepResult
from trainers.history import History, Stopwatch, peak_memory_bytes
from trainers.pretrain_work import FACTS, PretrainExecution, PretrainWork
from trainers.reporting import LeavingError, Reporter, StoppedError
from trainers.schedules import Leg
from trainers.segments import Batch
from trainers.watch import Watch

logger = logging.getLogger(__name__)

__all__ = ["DivergedError", "PretrainExecution", "PretrainWork", "run"]

_REPORTS = 100
_EVALUATIONS = 10
_STOP_CHECK_STEPS = 10


class DivergedError(RuntimeError):
    """Steps went wrong again and again."""


class _LeapError(Exception):
    """More steps in a row were skipped than is thought to help."""


def run(
    work: PretrainWork,
    execution: PretrainExecution,
    reporter: Reporter,
    share: checkpoint.Share | None = None,
) -> None:
    """Train on this rank and export the model. Collective: every rank of the gang calls it.

    Goes on from the newest intact checkpoint. Ranks come from torchrun's environment variables;
    with more than one, torch's process group must be set up. Ranks that see no common folder need a
    `share`.
    """
    torch.set_num_threads(execution.threads)
    ranks = Ranks.from_environment()
    logger.info("rank %d of %d begins", ranks.rank, ranks.world_size)
    with Deadline(execution.hang_after_s) as deadline, _own_scratch(work) as work:
        session = _Session(work, execution, ranks, reporter, share, deadline)
        logger.info("model and optimizer are ready")
        session.resume()
        session.train()
        with deadline.paused():
            session.export()


@contextmanager
def _own_scratch(work: PretrainWork) -> Iterator[PretrainWork]:
    """Keep what is offloaded to files apart from that of other trainings, and of other ranks."""
    zero = work.pretrain.zero
    if zero.nvme_path is None:
        yield work
        return
    with scratch.own_folder(Path(zero.nvme_path), field="pretrain.zero.nvme_path") as folder:
        own = zero.model_copy(update={"nvme_path": str(folder)})
        yield replace(work, pretrain=work.pretrain.model_copy(update={"zero": own}))


class _Session:
    """One rank's training under way."""

    def __init__(
        self,
        work: PretrainWork,
        execution: PretrainExecution,
        ranks: Ranks,
        reporter: Reporter,
        share: checkpoint.Share | None,
        deadline: Deadline,
    ) -> None:
        self._work, self._config, self._ranks = work, work.pretrain, ranks
        self._reporter, self._deadline = reporter, deadline
        self._parts = assembly.assemble(work, execution, ranks)
        self._engine = self._parts.engine
        self._checkpoints = Checkpointer(
            self._engine,
            root=work.checkpoints,
            earlier=work.earlier_checkpoints,
            ranks=ranks,
            config=self._config.checkpoint,
            share=share,
        )
        self._cursor, self._step = Cursor(), 0
        self._watch, self._history = Watch(self._config.watch), History()
        self._rollbacks: list[dict[str, Any]] = []
        self._speeds: list[dict[str, float]] = []
        self._branches = Branches(work.checkpoints, work.earlier_checkpoints, share)
        self._learning_rate = self._learning_rate_of(None)
        self._best_loss = math.inf
        self._stopwatch = Stopwatch()
        self._data_wait_s = self._evaluation_s = 0.0
        self._reported_step = 0

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        with self._deadline.paused():
            found = self._checkpoints.newest()
            if found is None:
                return
            self._restore(found)
        self._stopwatch = Stopwatch(before=found.state["seconds"])
        logger.info("resumed after step %d from %s", found.step, found.directory)

    def train(self) -> None:
        """The steps that are left; again those behind a checkpoint that a leap made us go back to.

        Raises:
            StoppedError: the training was asked to end; a checkpoint is saved.
            DivergedError: going back did not help.
        """
        try:
            for leg in schedules.legs(self._config.schedule, self._config.total_steps):
                if leg.is_branch:
                    self._branch_off(leg)
                else:
                    self._train_to(leg.stop_step, self._after_step)
            with self._deadline.paused():
                self._checkpoints.finish()
        finally:
            self._checkpoints.close()
            self._parts.close()

    def export(self) -> None:
        """Write the Hugging Face folder and the facts of the training, on rank 0."""
        weights = self._engine.weights()
        memory = self._of_all_ranks(peak_memory_bytes(self._engine.device))
        if self._ranks.rank == 0:
            model.export(self._work.output, self._parts.model, weights, self._parts.tokenizer)
            facts = {
                "parameters": sum(weight.numel() for weight in weights.values()),
                "precision": self._parts.precision,
                "world_size": self._ranks.world_size,
                "samples": self._cursor.samples,
                "samples_digest": self._cursor.digest,
                "skipped_steps": self._watch.skipped,
                "rollbacks": self._rollbacks,
                "branches": self._branches.facts,
                "memory_bytes_per_rank": memory,
                **self._stopwatch.total(self._seconds()),
                "history": self._history.points,
                "speeds": self._speeds,
            }
            self._branches.collect(self._work.output)
            (self._work.output / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            logger.info("exported the model to %s", self._work.output)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def _branch_off(self, leg: Leg) -> None:
        """Decay from here on to a model of its own, then come back. Killed, it is begun again."""
        if leg.start_step in self._branches.done:
            return
        self._save({})
        with self._deadline.paused():
            trunk = self._checkpoints.newest()
        assert trunk is not None  # it has just been saved
        self._learning_rate = self._learning_rate_of(leg)
        self._train_to(leg.stop_step, self._after_branch_step)
        measures, weights = self._evaluate(), self._engine.weights()
        if self._ranks.rank == 0:
            folder = self._branches.folder(leg.start_step)
            model.export(folder, self._parts.model, weights, self._parts.tokenizer)
        self._branches.add(leg, measures, is_written=self._ranks.rank == 0)
        self._learning_rate = self._learning_rate_of(None)
        self._restore(trunk)

    def _after_branch_step(self, step: int, result: StepResult) -> None:
        self._step = step + 1
        self._require_patience(result)
        if self._is_stop_check_due:
            self._stop_if_asked(is_saved=True)  # where it left the trunk

    def _train_to(self, stop_step: int, after_step: Callable[[int, StepResult], None]) -> None:
        while self._step < stop_step:
            try:
                self._go_on(stop_step, after_step)
            except _LeapError:
                self._roll_back()

    def _go_on(self, stop_step: int, after_step: Callable[[int, StepResult], None]) -> None:
        coming = Prefetcher(self._parts.batches, self._cursor)

        def read(step: int) -> list[Batch]:  # noqa: ARG001 -- the cursor knows the step
            before = coming.wait_s
            batches, self._cursor = coming.next()
            self._data_wait_s += coming.wait_s - before
            return batches

        self._reported_step = self._step
        try:
            loop.train(
                self._engine,
                read,
                steps=range(self._step, stop_step),
                learning_rate=self._learning_rate,
                seed=self._config.seed * 1_009 + self._ranks.rank,
                after_step=after_step,
                accept=self._watch.accept,
            )
        finally:
            coming.close()

    def _learning_rate_of(self, leg: Leg | None) -> Callable[[int], float]:
        config = self._config
        return schedules.learning_rate(
            config.schedule, peak=config.learning_rate, total_steps=config.total_steps, leg=leg
        )

    def _after_step(self, step: int, result: StepResult) -> None:
        """Report, evaluate, save and end where it is time for it."""
        done, total = step + 1, self._config.total_steps
        self._step = done
        self._history.take(result)
        self._require_patience(result)
        measures = self._evaluate() if _is_due(done, self._evaluate_every, total) else {}
        if self._history.has_news and (measures or _is_due(done, self._report_every, total)):
            self._report(measures)
        is_best = measures.get("validation_loss", math.inf) < self._best_loss
        if is_best:
            self._best_loss = measures["validation_loss"]
        # What follows a skipped step is not known to be good.
        is_due = is_best or done % self._config.checkpoint.every_steps == 0
        is_saved = is_due and done < total and not self._watch.skipped_in_a_row
        if is_saved:
            self._save(measures)
        if self._is_stop_check_due and done < total:
            self._stop_if_asked(is_saved=is_saved)

    def _require_patience(self, result: StepResult) -> None:
        """Count a step as a sign of life; where too many were skipped, training must go back."""
        self._deadline.beat()
        if not result.is_applied:
            cause = self._watch.cause or "the loss scale is found"
            logger.warning("step %d is skipped: %s", self._step, cause)
        if self._watch.is_at_end_of_patience:
            raise _LeapError

    @property
    def _is_stop_check_due(self) -> bool:
        return self._step % min(self._report_every, _STOP_CHECK_STEPS) == 0

    @property
    def _report_every(self) -> int:
        return max(1, self._config.total_steps // _REPORTS)

    @property
    def _evaluate_every(self) -> int:
        every = self._config.evaluation.every_steps
        return every or max(1, self._config.total_steps // _EVALUATIONS)

    def _evaluate(self) -> dict[str, float]:
        started = time.monotonic()
        found = self._parts.evaluation.run(self._engine, self._deadline.beat)
        self._evaluation_s += time.monotonic() - started
        return found

    def _report(self, measures: Mapping[str, float]) -> None:
        """Make a point of the history; all ranks do, rank 0's is heard."""
        point = self._history.close(
            {
                "optimizer_step": self._step,
                "total_steps": self._config.total_steps,
                "tokens": self._step * self._config.global_batch_tokens,
                "learning_rate": self._learning_rate(self._step - 1),
                **measures,
            }
        )
        steps, self._reported_step = self._step - self._reported_step, self._step
        speed: dict[str, float] = self._stopwatch.lap(self._seconds(), steps)
        rate = self._config.global_batch_tokens / speed["step_s"]
        used = self._parts.utilisation(rate / self._ranks.world_size)
        speed |= {
            "tokens_per_s": rate,
            **({} if used is None else {"model_flops_utilisation": used}),
            "memory_bytes": peak_memory_bytes(self._engine.device),
            "skipped_steps": self._watch.skipped,
            "rollbacks": len(self._rollbacks),
        }
        self._speeds.append({"optimizer_step": self._step, **speed})
        step = self._checkpoints.saved_step
        self._reporter.report({**point, **speed, **({} if step is None else {"saved_step": step})})

    def _seconds(self) -> dict[str, float]:
        """By what the loop was busy with, in this process so far."""
        return {
            "data_s": self._data_wait_s,
            "forward_backward_s": self._engine.clock.forward_backward,
            "optimizer_s": self._engine.clock.optimizer,
            "evaluation_s": self._evaluation_s,
            "checkpoint_s": self._checkpoints.stall_s,
        }

    def _stop_if_asked(self, *, is_saved: bool) -> None:
        """End with a checkpoint when rank 0 is asked to, or a node is about to go; all together."""
        is_leaving = self._reporter.is_leaving()
        is_asked = self._ranks.rank == 0 and self._work.should_stop()
        asked = self._engine.mean(torch.tensor(float(is_asked), device=self._engine.device))
        if not (is_leaving or asked):
            return
        if not is_saved:
            self._save({})
        with self._deadline.paused():
            self._checkpoints.finish()
        saved = f"step {self._step}, which is saved"
        raise (
            LeavingError(f"a node goes after {saved}")
            if is_leaving
            else StoppedError(f"stopped after {saved}")
        )

    def _save(self, measures: Mapping[str, float]) -> None:
        """Begin a checkpoint of all that is not a function of the step. Collective.

        Random states are: the loop seeds each step. The learning rate is, too.
        """
        state = {
            "cursor": asdict(self._cursor),
            "history": self._history.state(),
            "watch": self._watch.state(),
            "rollbacks": self._rollbacks,
            "branches": self._branches.facts,
            "speeds": self._speeds,
            "best_loss": self._best_loss,
            "seconds": self._stopwatch.total(self._seconds()),
            **measures,
        }
        with self._deadline.paused():
            self._checkpoints.save(self._step, state)

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        self._checkpoints.load(found)
        state = found.state
        self._step, self._cursor = found.step, Cursor(**state["cursor"])
        self._history = History(**state["history"])
        self._watch = Watch.restored(self._config.watch, state["watch"])
        self._rollbacks = [*state["rollbacks"], *self._rollbacks[len(state["rollbacks"]) :]]
        self._branches.restore(state["branches"])
        self._speeds = list(state["speeds"])
        self._best_loss = state["best_loss"]

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, and on behind the samples that were read since."""
        reached, cause = self._cursor.samples, self._watch.cause
        trouble = f"{self._watch.skipped_in_a_row} steps in a row were skipped, the last because "
        trouble += f"{cause} after step {self._step}"
        step, most = self._step, self._config.watch.max_rollbacks
        with self._deadline.paused():
            found = self._checkpoints.newest()
        if found is None or len(self._rollbacks) >= most:
            why = f"went back {most} times" if found else "there is no checkpoint to go back to"
            raise DivergedError(
                f"{trouble}, and {why}; lower pretrain.learning_rate, lengthen the warm-up or look "
                "at the data of these steps"
            )
        self._restore(found)
        jumped = [self._cursor.samples, reached]
        event = {"after_step": step, "to_step": found.step, "samples": jumped, "cause": cause}
        self._rollbacks = [*self._rollbacks, event]
        self._cursor = Cursor(reached, order.chain(self._cursor.digest, jumped))
        logger.warning("%s; went back to step %d, samples %s left out", trouble, found.step, jumped)

    def _of_all_ranks(self, value: int) -> list[int]:
        if not torch.distributed.is_initialized():
            return [value]
        found = [0] * self._ranks.world_size
        torch.distributed.all_gather_object(found, value)
        return found


def _is_due(done: int, every: int, total: int) -> bool:
    return done % every == 0 or done == total
