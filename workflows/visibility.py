"""Does every node see the storage? Found out before anything runs."""

import uuid

from cluster.interface import Cluster
from workflows.storage import Storage, StorageError, scheme_of

_PROBES = "probes"


def check(where: Storage, cluster: Cluster) -> None:
    """Write a file from here and read it on every node.

    Raises:
        StorageError: names the nodes that do not see it, and what to set.
    """
    seen = look(where, cluster)
    blind = [f"{node}: {why}" for node, why in seen.items() if why is not None]
    if blind:
        raise StorageError(
            f"{where.root} is not seen by {len(blind)} of {len(seen)} nodes "
            f"({'; '.join(blind)}); {way_out(where)}"
        )


def look(
    where: Storage, cluster: Cluster, *, timeout_s: float | None = None
) -> dict[str, str | None]:
    """Why a node does not see the storage, by the node's name; None for those that do.

    Raises:
        StorageError: it cannot be written from here.
    """
    name, content = f"{_PROBES}/{uuid.uuid4().hex}", uuid.uuid4().bytes
    where.create(name, content, durable=False)
    try:
        outcomes = cluster.on_every_node(_read, where, name, timeout_s=timeout_s)
    finally:
        where.delete(name)
    return {
        node: None if outcome.value == content else str(outcome.error or "another file is there")
        for node, outcome in outcomes.items()
    }


def way_out(where: Storage) -> str:
    """What to do about a storage that some nodes do not see."""
    if scheme_of(where.root) is None:
        return (
            "set storage to a folder that all nodes share (NFS, Lustre, ...) or to an object "
            "store, for example storage: s3://bucket/prefix"
        )
    return "give every node the credentials and the network to reach it"


def _read(where: Storage, name: str) -> bytes:
    return where.read(name)
