"""Rows of a task."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Examples:
    """Rows of one split."""

    texts: list[Any]
    """Strings, or lists of words."""
    labels: list[Any]
    """As the type's `label_of` gives them; empty where nobody knows them."""
    pairs: list[str] | None = None
    """Second texts, where the task compares two; questions, where it answers them."""

    def __len__(self) -> int:
        return len(self.texts)
