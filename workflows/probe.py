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
    name, content = f"{_PROBES}/{uuid.uuid4().hex}", uuid.uuid4().bytes
    where.create(name, content, durable=False)
    try:
        outcomes = cluster.on_every_node(_read, where, name)
    finally:
        where.delete(name)
    blind = [
        f"{node}: {outcome.error or 'another file is there'}"
        for node, outcome in outcomes.items()
        if outcome.value != content
    ]
    if blind:
        way_out = (
            "set storage to a folder that all nodes share (NFS, Lustre, ...) or to an object "
            "store, for example storage: s3://bucket/prefix"
            if scheme_of(where.root) is None
            else "give every node the credentials and the network to reach it"
        )
        raise StorageError(
            f"{where.root} is not seen by {len(blind)} of {len(outcomes)} nodes "
            f"({'; '.join(blind)}); {way_out}"
        )


def _read(where: Storage, name: str) -> bytes:
    return where.read(name)
