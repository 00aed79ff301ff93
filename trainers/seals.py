"""JSON that tells when it is not what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SEAL = "seal"


class BrokenSealError(ValueError):
    """The content is not what was written."""


def sealed(entry: Mapping[str, Any], place: str) -> bytes:
    """An entry as JSON, with a digest of all the rest in it and of where it belongs."""
    digest = hashlib.sha256(place.encode() + b"\n" + _text(entry)).hexdigest()
    return _text({**entry, _SEAL: digest})


def opened(content: bytes, place: str) -> dict[str, Any]:
    """What `sealed` was given for this place.

    Raises:
        BrokenSealError: one bit of it differs, it belongs elsewhere, or it never had a seal.
    """
    try:
        entry: dict[str, Any] = json.loads(content)
        del entry[_SEAL]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenSealError("it has no seal, or is not what was written") from error
    if sealed(entry, place) != content:
        raise BrokenSealError("it is not what was written there")
    return entry


def _text(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, indent=1).encode()
