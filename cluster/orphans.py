"""Gives back what processes that were killed had reserved."""

import contextlib
import logging
import threading
from collections.abc import Iterator

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

logger = logging.getLogger(__name__)

_EVERY_S = 2.0


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """Remove reservations of this job whose maker is dead, as long as the block runs.

    Ray keeps what an actor has reserved until the actor and its whole job have ended. Ray Train's
    controller of a gang is one: when it is killed, nobody else ever gets the gang's place. Ray
    Train's own remedy is a process for each gang that asks Ray's dashboard, which need not be
    there; gangs do without it (`cluster.gang`).
    """
    is_over = threading.Event()

    def sweep() -> None:
        while not is_over.wait(_EVERY_S):
            try:
                _remove_orphans()
            except Exception:  # a border: what Ray says of a cluster that is gone has many types
                logger.debug("the next look will tell", exc_info=True)

    sweeper = threading.Thread(target=sweep, name="orphans", daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        is_over.set()
        sweeper.join()


def _remove_orphans() -> None:
    own_job = ray.get_runtime_context().get_job_id()
    for packed in state._connect_and_get_accessor().get_placement_group_table():  # noqa: SLF001
        found = PlacementGroupTableData.FromString(packed)
        is_ours = found.creator_job_id.hex() == own_job
        is_orphan = bool(found.creator_actor_id.strip(b"\xff")) and found.creator_actor_dead
        if is_ours and is_orphan and found.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))
