"""Numbers, times and sizes as people read them. Pure."""

from typing import Any

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def number(value: Any) -> str:
    """A number with four digits, or its thousands told apart; everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def clock(seconds: float) -> str:
    """A duration: seconds below a minute, then minutes, then hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(size_bytes: float) -> str:
    """A number of bytes in the unit that leaves few digits; 1 kB is 1,000 bytes."""
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{int(value)} {_UNITS[0]}" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def cut(text: str, most: int) -> str:
    """A text with so many characters at most; three dots say that there was more."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
