"""A run's curves as event files of TensorBoard."""

import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from workflows import curves
from workflows.curves import Curves
from workflows.ledger import Record
from workflows.storage import Storage

FILE = "events.out.tfevents.pretune"
"""TensorBoard takes a folder for a run, and reads the files in it whose names have `tfevents`."""

_FORMAT = "brain.Event:2"
_NO_MEASURES = {"optimizer_step", "total_steps"}


def write(where: Storage, folder: str, records: Iterable[Record]) -> None:
    """Make a folder what TensorBoard shows of steps, in place of what was there.

    The files of equal records are equal to the last byte.
    """
    where.delete(folder)
    for record in records:
        found = curves.told(where, record)
        ended = datetime.fromisoformat(record.finished_at).timestamp()
        for one in [] if found is None else curves.of(record, found):
            if one.points:
                where.write(f"{folder}/{one.name}/{FILE}", _events(one, ended))


def _events(told: Curves, at: float) -> bytes:
    """An event for each point, all as of when the step ended: points have no time of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=at, file_version=_FORMAT).SerializeToString())
        for step, measures in told.points:
            event = Event(wall_time=at, step=step)
            for name, value in measures.items():
                if name not in _NO_MEASURES:
                    event.summary.value.add(tag=name, simple_value=value)
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()
