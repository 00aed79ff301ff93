from pathlib import Path

import pytest

from cluster import tokens
from cluster.tokens import Token, TokenError


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


def write(path: Path, token: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{token}\n")
    return path


def test_the_nearest_place_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens.find() is None
    write(tmp_path / ".ray" / "auth_token", "of-the-user")
    assert tokens.find() == Token("of-the-user")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(write(tmp_path / "named", "of-the-path")))
    assert tokens.find() == Token("of-the-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-variable")
    assert tokens.find() == Token("of-the-variable")
    given = write(tmp_path / "given", "of-the-option")
    assert tokens.find(given) == Token("of-the-option")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert tokens.find() is None
    assert tokens.find(given) == Token("of-the-option")


def test_the_token_of_this_machine_goes_nowhere_else_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / ".ray" / "auth_token", "of-the-user")
    assert tokens.find(host="127.0.0.1") == Token("of-the-user")
    assert tokens.find(host="head") is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert tokens.find(host="head") == Token("of-the-user")


def test_a_named_file_must_hold_one(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be read"):
        tokens.find(tmp_path / "nowhere")
    with pytest.raises(TokenError, match="no token in it"):
        tokens.find(write(tmp_path / "empty", ""))
    for value in ("two lines\nsecret", "two words", "gr\u00fc\u00dfe"):
        with pytest.raises(TokenError, match="one word of printable") as told:
            tokens.find(write(tmp_path / "bad", value))
        assert value not in str(told.value)


def test_it_is_not_told_by_accident() -> None:
    token = Token("canary")
    assert "canary" not in f"{token} {token!r} {[token]}"
