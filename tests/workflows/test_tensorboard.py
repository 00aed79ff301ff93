"""Curves as TensorBoard's files, of a storage that was written here instead of by a run."""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tensorboardX.proto.event_pb2 import Event
from test_tracking import FIRST, SECOND, World, finish, free_port

from workflows import summaries, tensorboard
from workflows.artifacts import output_name
from workflows.execution import RunPaths, StageContext
from workflows.pipeline import TrackSpec
from workflows.storage import Storage

Curves = dict[str, dict[str, list[tuple[int, float]]]]

FOLDER = f"runs/{FIRST}/tensorboard"


@pytest.fixture
def world(storage: Storage, tmp_path: Path) -> World:
    return World(storage, tmp_path)


def crc32c(content: bytes) -> int:
    """By its definition (RFC 3720, appendix B.4), bit by bit."""
    found = 0xFFFFFFFF
    for byte in content:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def events(content: bytes) -> Iterator[Event]:
    """The records of a TFRecord file: length and content, each with a masked checksum behind it."""

    def checked(at: int, size: int) -> bytes:
        part = content[at : at + size]
        (mask,) = struct.unpack_from("<I", content, at + size)
        rotated = (mask - 0xA282EAD8) & 0xFFFFFFFF
        assert crc32c(part) == (rotated << 15 | rotated >> 17) & 0xFFFFFFFF
        return part

    at = 0
    while at < len(content):
        (size,) = struct.unpack("<Q", checked(at, 8))
        yield Event.FromString(checked(at + 12, size))
        at += 16 + size


def curves(where: Storage, folder: str = FOLDER) -> Curves:
    """All that a folder tells, by run and tag."""
    found: Curves = {}
    for name in where.find(folder):
        run, _, file = name.rpartition("/")
        assert "tfevents" in file
        first, *others = events(where.read(f"{folder}/{name}"))
        assert first.file_version == "brain.Event:2"
        assert {event.wall_time for event in others} == {first.wall_time}
        points = defaultdict(list)
        for event in others:
            for value in event.summary.value:
                points[value.tag].append((event.step, value.simple_value))
        found[run] = dict(points)
    return found


def test_curves_of_pretraining_and_of_trials_are_there(world: World) -> None:
    tensorboard.write(world.where, FOLDER, world.records)
    assert curves(world.where) == {
        "pretrain": {
            "loss": [(step, pytest.approx(1 / step)) for step in range(1, 601)],
            "tokens_per_second": [(600, 2000.0)],
        },
        "tone.tune.00000": {"loss": [(1, pytest.approx(0.7)), (2, 0.5)]},
    }


def test_points_are_as_of_the_end_of_their_step(world: World) -> None:
    tensorboard.write(world.where, FOLDER, world.records)
    first, *_ = events(world.where.read(f"{FOLDER}/pretrain/{tensorboard.FILE}"))
    ended = datetime.fromisoformat(world.records[0].finished_at)
    assert first.wall_time == ended.timestamp()


def test_written_again_every_byte_is_the_same(world: World) -> None:
    def content() -> dict[str, bytes]:
        names = [f"{FOLDER}/{name}" for name in world.where.find(FOLDER)]
        return world.where.read_all(names)

    tensorboard.write(world.where, FOLDER, world.records)
    before = content()
    tensorboard.write(world.where, FOLDER, world.records)
    assert content() == before
    assert len(before) == 2


def test_what_is_computed_anew_takes_the_place_of_what_was_there(world: World) -> None:
    tensorboard.write(world.where, FOLDER, world.records)
    told = {"trial_id": "00002", "hyperparameters": {}, "status": "finished"}
    trial = told | {"history": [{"loss": math.nan, "accuracy": 1}]}
    world.records[1] = finish(world.where, "tone.tune", SECOND, {"trials.json": [trial]})
    tensorboard.write(world.where, FOLDER, world.records)
    found = curves(world.where)
    assert found.keys() == {"pretrain", "tone.tune.00002"}
    assert found["tone.tune.00002"]["accuracy"] == [(1, 1.0)]
    ((_, loss),) = found["tone.tune.00002"]["loss"]
    assert math.isnan(loss)


def test_steps_whose_artifacts_are_gone_are_left_out(world: World) -> None:
    world.where.delete(output_name(world.records[0]))
    tensorboard.write(world.where, FOLDER, world.records)
    assert curves(world.where).keys() == {"tone.tune.00000"}


@pytest.mark.parametrize("is_asked", [True, False])
def test_the_step_writes_them_where_asked_also_while_mlflow_is_down(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    world = World(local, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec = TrackSpec(name="tiny", tensorboard=is_asked)
    given: Any = SimpleNamespace(
        run=SimpleNamespace(paths=RunPaths(local, SECOND)),
        records={record.name: record for record in world.records},
        spec=lambda kind: spec,
    )
    facts = summaries.track(cast("StageContext", given))
    assert "error" in facts
    folder = f"runs/{SECOND}/tensorboard"
    assert facts.get("tensorboard") == (local.url(folder) if is_asked else None)
    found = curves(local, folder)
    assert found.keys() == ({"pretrain", "tone.tune.00000"} if is_asked else set())
