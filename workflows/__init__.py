"""In what order, and what is kept: pipeline, artifacts, promotion, model store, report, CLI.

From Python: `from workflows import load_config, build_steps, run` (`workflows.api`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflows.api import Run, build_steps, load_config, run

__all__ = ["Run", "build_steps", "load_config", "run"]


def __getattr__(name: str) -> Any:
    """Load the API when it is asked for: most modules of this package need little of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workflows import api

    return getattr(api, name)
