"""Clusters that this user has named: an address in a storage, which others write, gets no token."""

from urllib.parse import urlsplit

from cluster import tokens
from cluster.cache import cache_folder

_FILE = "clusters"


def remember(url: str) -> None:
    """The user named it; where nothing can be kept it will have to be named again."""
    if is_known(url):
        return
    try:
        file = cache_folder() / _FILE
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"{url}\n")
    except (OSError, RuntimeError):
        return


def is_known(url: str) -> bool:
    """Whether it was named before, or is on this machine."""
    if urlsplit(url).hostname in tokens.LOOPBACK:
        return True
    try:
        return url in (cache_folder() / _FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return False
