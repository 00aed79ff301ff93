"""What the processes of a step logged, on whichever node, kept in an object store.

In a folder that all nodes see, all of them write in place.
"""

import logging
import socket
from pathlib import Path

from cluster.cache import cache_folder
from cluster.interface import Cluster
from workflows.storage import Storage

logger = logging.getLogger(__name__)

_WAIT_S = 20.0


def keep(where: Storage, name: str, target: str, cluster: Cluster) -> None:
    """Upload a folder of logs from this node, and from the others that have one of that name.

    What cannot be uploaded stays where it is: a step is no worse for that. So do the logs of nodes
    that are gone, or silent for twenty seconds.

    Args:
        where: the object store.
        name: of the folder, in the cache of each node.
        target: folder in the store. What comes from other nodes is in one more, by their host.
        cluster: whose nodes are asked.
    """
    try:
        if _folder(name).is_dir():
            where.upload(_folder(name), target)
        if len(cluster.capacity().nodes) > 1:
            _ask_others(where, name, target, cluster)
    except Exception as error:
        logger.warning("logs of %s stay where they are: %s", name, error)


def _ask_others(where: Storage, name: str, target: str, cluster: Cluster) -> None:
    told = cluster.on_every_node(_upload, where, name, target, _place(), timeout_s=_WAIT_S)
    for node, outcome in told.items():
        if outcome.error is not None:
            logger.warning("logs of node %s stay there: %s", node, outcome.error)


def _upload(where: Storage, name: str, target: str, done: tuple[str, str]) -> None:
    if _place() != done and _folder(name).is_dir():
        where.upload(_folder(name), f"{target}/{socket.gethostname()}")


def _folder(name: str) -> Path:
    return cache_folder() / name


def _place() -> tuple[str, str]:
    """This node's cache, of which a machine with several nodes has several."""
    return socket.gethostname(), str(cache_folder())
