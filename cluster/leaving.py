"""A node that is to go: Ray is told, and the gangs that train there leave in time."""

import time
from collections.abc import Sequence
from pathlib import Path

from ray._raylet import (  # type: ignore[attr-defined]
    GcsClient,
    GcsClientOptions,
    GlobalStateAccessor,
)
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import ActorTableData, GcsNodeInfo
from ray.exceptions import AuthenticationError
from ray.util import get_node_ip_address

from cluster.interface import UnreachableError
from cluster.ray_cluster import check_reachable

_POLL_S = 0.5
_REQUEST_S = 10.0
_RANK = "RayTrainWorker"
"""The class of Ray Train's ranks; trials of one worker have saved after their last epoch anyway."""


class Leaving:
    """One node of a Ray, from outside of it: a driver would end with the node's raylet."""

    def __init__(self, address: str, node: str | None = None) -> None:
        """Look up the node of this machine, or the one whose id begins with `node`.

        Raises:
            UnreachableError: no Ray answers at `address` (host:port of the head's GCS), it refuses
                the token, or not just one node of it is meant.
        """
        check_reachable(address)
        try:
            alive = self._connect(address)
        except AuthenticationError:
            refused = f"the Ray at {address} refuses the token; set RAY_AUTH_TOKEN to its own"
            raise UnreachableError(refused) from None
        meant = [one for one in alive if _is_here(one)] if node is None else alive
        self.node = _the_only([one.node_id.hex() for one in meant], node or "")

    def _connect(self, address: str) -> list[GcsNodeInfo]:
        """The nodes that are alive."""
        self._client = GcsClient(address=address)
        nodes = self._client.get_all_node_info(timeout=_REQUEST_S).values()
        options = GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True
        )
        self._state = GlobalStateAccessor(options)
        if not self._state.connect():
            raise UnreachableError(f"the Ray at {address} does not answer")
        return [one for one in nodes if one.state == GcsNodeInfo.ALIVE]

    def announce(self, within_s: float) -> None:
        """Nothing new is begun on the node, and who trains there is told when it goes."""
        self._client.drain_node(
            self.node,
            DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "pretune drain",
            int((time.time() + within_s) * 1000),
            timeout=_REQUEST_S,
        )

    def wait_for_ranks(self, within_s: float) -> int:
        """Wait until no rank of a gang is left, at most so long; return how many are."""
        end = time.monotonic() + within_s
        while (left := self._ranks()) and time.monotonic() < end:
            time.sleep(_POLL_S)
        return left

    def _ranks(self) -> int:
        actors = self._state.get_actor_table(None, "ALIVE")
        found = [ActorTableData.FromString(packed) for packed in actors]
        return sum(
            actor.class_name == _RANK and actor.address.node_id.hex() == self.node
            for actor in found
        )


def _is_here(node: GcsNodeInfo) -> bool:
    """Pods have the same paths, and nodes of one machine the same address."""
    is_same_address = node.node_manager_address == get_node_ip_address()
    return is_same_address and Path(node.raylet_socket_name).exists()


def _the_only(found: Sequence[str], prefix: str) -> str:
    named = [node for node in found if node.startswith(prefix)]
    if len(named) == 1:
        return named[0]
    which = f"with an id that begins with {prefix}" if prefix else "of this machine"
    some = f": {', '.join(named)}; name one by --node" if named else ""
    raise UnreachableError(f"{len(named)} nodes {which} are alive{some}")
