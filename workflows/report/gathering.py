"""What a report is made from: the few files of a run's steps that it reads, from storage alone."""

from collections.abc import Mapping, Sequence

from trainers import predictions, task_data
from trainers.pretrain_work import FACTS
from workflows import family, history
from workflows.artifacts import Artifacts, Finished
from workflows.config import ConfigError
from workflows.final import MODEL, RESULT, TRIALS
from workflows.history import RunHead
from workflows.ledger import Record
from workflows.models import ModelStore
from workflows.report import page
from workflows.steps import PROMOTING, SUMMARIES, StepRef
from workflows.storage import Storage

READ: Mapping[str, Sequence[str]] = {
    "pretrain": (FACTS,),
    "data": (task_data.LABELS, f"{task_data.TEST}.parquet"),
    "tune": (TRIALS,),
    "final": (RESULT, f"{MODEL}/{predictions.FILE}"),
}
"""Files by the kind of step: a corpus of terabytes in an object store stays there."""


def of_run(where: Storage, run_id: str) -> str:
    """The page about a run as far as it came; it may have failed, or still run.

    Raises:
        ConfigError: there is no such run, or it was ended before it began.
        DamagedFileError: a file that is read is not what its step wrote.
    """
    head = history.head(where, run_id)
    if head is None:
        raise ConfigError(f"no run {run_id!r} in {where.root}, or it did not begin")
    steps = [StepRef(name, *identity) for name, identity in head.steps.items()]
    told = [step for step in steps if step.kind not in SUMMARIES]
    artifacts = Artifacts(where)
    found = {step.name: artifacts.find(step) for step in told}
    records = {name: record for name, record in found.items() if record is not None}
    return of_records(artifacts, head, list(found), records)


def of_records(
    artifacts: Artifacts, head: RunHead, steps: Sequence[str], records: Mapping[str, Record]
) -> str:
    """The page about finished steps.

    Args:
        artifacts: where their files are.
        head: of the run that makes it.
        steps: names of all steps, in order.
        records: of those that succeeded, by name.

    Raises:
        DamagedFileError: a file that is read is not what its step wrote.
    """
    store = ModelStore(artifacts.storage)
    known = {name: records[name] for name in steps if name in records}
    return page.render(
        head.pipeline,
        steps,
        {
            name: Finished(record, artifacts.excerpt(record, READ.get(record.kind, ())))
            for name, record in known.items()
        },
        {
            name: family.as_it_came(store, record.facts)
            for name, record in known.items()
            if record.kind in PROMOTING
        },
        run=head.run_id,
        commit=head.commit,
    )
