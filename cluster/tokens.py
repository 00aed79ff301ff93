"""The token that a Ray cluster asks for: found, carried, never shown."""

import os
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN, _PATH, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
_DEFAULT = Path(".ray", "auth_token")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
"""Hosts that are this machine."""


class TokenError(ValueError):
    """The token that was named cannot be read."""


@dataclass(frozen=True)
class Token:
    """A secret that neither `repr` nor `str` tells."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "<token>"


def find(file: Path | None = None, host: str = "localhost") -> Token | None:
    """The token of a file, or the one the environment names; None where there is none.

    Ray takes RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, then `~/.ray/auth_token`; with
    RAY_AUTH_MODE=disabled none. The last, which Ray makes for its own on this machine, goes to
    another `host` only with RAY_AUTH_MODE=token.

    Raises:
        TokenError: a file that was named is not there, or is empty.
    """
    if file is not None:
        return _read(file)
    mode = os.environ.get(_MODE, "").lower()
    if mode == "disabled":
        return None
    if os.environ.get(_TOKEN):
        return Token(os.environ[_TOKEN].strip())
    if os.environ.get(_PATH):
        return _read(Path(os.environ[_PATH]))
    default = Path.home() / _DEFAULT
    is_for_it = mode == "token" or host in LOOPBACK
    return _read(default) if is_for_it and default.is_file() else None


def files(file: Path | None = None) -> list[Path]:
    """Files that hold a token, of those that are named; they are for nobody else."""
    named = [Path(os.environ[_PATH])] if os.environ.get(_PATH) else []
    return [*named, *([file] if file else [])]


def _read(file: Path) -> Token:
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"{file}: the token cannot be read: {error}") from error
    if not value:
        raise TokenError(f"{file}: there is no token in it")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise TokenError(f"{file}: no token, which is one word of printable characters")
    return Token(value)
