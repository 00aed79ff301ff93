"""The token that a Ray cluster asks for: found, carried, never shown."""

import os
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN, _PATH, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
_DEFAULT = Path(".ray", "auth_token")


class TokenError(ValueError):
    """The token that was named cannot be read."""


@dataclass(frozen=True)
class Token:
    """A secret that neither `repr` nor `str` tells."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "<token>"


def find(file: Path | None = None) -> Token | None:
    """The token of a file, or the one Ray itself would take; None where there is none.

    Ray takes RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, then `~/.ray/auth_token`; with
    RAY_AUTH_MODE=disabled none.

    Raises:
        TokenError: a file that was named is not there, or is empty.
    """
    named = file or (Path(os.environ[_PATH]) if os.environ.get(_PATH) else None)
    if file is None:
        if os.environ.get(_MODE, "").lower() == "disabled":
            return None
        if os.environ.get(_TOKEN):
            return Token(os.environ[_TOKEN].strip())
    if named is not None:
        return _read(named)
    default = Path.home() / _DEFAULT
    return _read(default) if default.is_file() else None


def _read(file: Path) -> Token:
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"{file}: the token cannot be read: {error}") from error
    if not value:
        raise TokenError(f"{file}: there is no token in it")
    return Token(value)
