from pathlib import Path

import pytest

from cluster.cache import cache_folder

HOME = Path("/home/somebody")


@pytest.mark.parametrize(
    ("own", "of_all_programs", "expected"),
    [
        ("/fast/cache", "/other", Path("/fast/cache")),
        ("", "/other", Path("/other/pretune")),
        ("", "relative", HOME / ".cache" / "pretune"),
        ("", "", HOME / ".cache" / "pretune"),
    ],
)
def test_first_folder_that_is_set_is_taken(
    own: str, of_all_programs: str, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", of_all_programs)
    monkeypatch.setenv("HOME", str(HOME))
    assert cache_folder() == expected
