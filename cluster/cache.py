"""Where Pretune keeps what only saves time: any of it may be deleted at any moment."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder, which may not exist yet.

    `$PRETUNE_CACHE`, else `$XDG_CACHE_HOME/pretune`, else `~/.cache/pretune`.

    Raises:
        RuntimeError: neither is set, and the user has no home.
    """
    if own := os.environ.get("PRETUNE_CACHE"):
        return Path(own)
    of_all_programs = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification wants a relative path ignored.
    folder = of_all_programs if of_all_programs.is_absolute() else Path.home() / ".cache"
    return folder / "pretune"
