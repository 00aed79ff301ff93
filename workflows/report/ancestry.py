"""Which results a model rests on, from the records of steps. Pure."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from workflows.ledger import Record


def chain(record: Record, records: Iterable[Record]) -> list[Record]:
    """A step behind all that it rests on, each once, in the order of the records."""
    known = list(records)
    by_fingerprint = {one.fingerprint: one for one in known}
    wanted, seen = [record.fingerprint], set[str]()
    while wanted:
        fingerprint = wanted.pop()
        if fingerprint in seen or fingerprint not in by_fingerprint:
            continue
        seen.add(fingerprint)
        wanted += by_fingerprint[fingerprint].inputs.values()
    return [one for one in known if one.fingerprint in seen]


def read_by(records: Iterable[Record]) -> dict[str, list[str]]:
    """Names of the steps that each step read, by its name."""
    known = list(records)
    names = {one.fingerprint: one.name for one in known}
    return {
        one.name: [names[found] for found in one.inputs.values() if found in names] for one in known
    }


def versions(records: Iterable[Record]) -> dict[str, list[str]]:
    """Versions of each library that steps ran with; more than one where results were reused."""
    found: dict[str, list[str]] = {}
    for record in records:
        for library, version in record.versions.items():
            if version not in found.setdefault(library, []):
                found[library].append(version)
    return found


def files(outside: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names of outside files with their digests.

    Without their folders: a report is sent around, and a path or an address tells more than it has
    to.
    """
    return [
        (PurePosixPath(path.partition("?")[0]).name, digest) for path, digest in outside.items()
    ]
