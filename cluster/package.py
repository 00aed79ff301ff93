"""A folder as one archive for a cluster: what is sent, how large it is, what is left out."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

MOST_BYTES = 512 * 1024 * 1024
"""Ray keeps packages in the head's memory, and takes none beyond the limit of its messages."""

_IGNORE_FILES = (".rayignore", ".gitignore")
_NEVER = {".git", "__pycache__"}
_MARK_OF_ENVIRONMENT = "pyvenv.cfg"
_LARGEST = 10
_TIME = (1980, 1, 1, 0, 0, 0)
"""Equal files make equal archives, which are sent once."""


class PackageError(ValueError):
    """The folder cannot be sent."""


@dataclass(frozen=True)
class Package:
    """An archive of a folder's files."""

    path: Path
    files: tuple[str, ...]
    """Their names in the folder."""
    size_bytes: int
    """Of the archive."""

    @property
    def name(self) -> str:
        """By which the cluster knows it: its content's digest."""
        return self.path.name

    @property
    def uri(self) -> str:
        """Where the cluster keeps it."""
        return f"gcs://{self.name}"


def pack(folder: Path, into: Path, leave_out: Sequence[Path] = ()) -> Package:
    """Write a folder's files to an archive in the folder `into`.

    Left out are what `.gitignore` and `.rayignore` name (the latter has the last word), virtual
    environments, `.git` and `leave_out`.

    Raises:
        PackageError: it is too large; names the largest files.
    """
    sizes = {name: (folder / name).stat().st_size for name in names(folder, leave_out)}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        raise PackageError(
            f"{folder} holds {_mb(total)} to send, and Ray takes {_mb(MOST_BYTES)} at most; put "
            f"data on storage that the nodes see, name it in .rayignore, or give a smaller "
            f"--working-dir. The largest: {_largest(sizes)}"
        )
    partial = into / "package.zip"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sizes:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (folder / name).stat().st_mode << 16
            archive.writestr(entry, (folder / name).read_bytes())
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()[:32]
    path = partial.rename(into / f"_ray_pkg_{digest}.zip")
    return Package(path, tuple(sizes), path.stat().st_size)


def names(folder: Path, leave_out: Sequence[Path] = ()) -> list[str]:
    """The files of a folder that are sent, by their names in it, in order."""
    left_out = {path.absolute() for path in leave_out}
    return sorted(_names(folder, folder, [], left_out))


_Rules = list[tuple[Path, GitIgnoreSpec]]


def _names(folder: Path, root: Path, outer: _Rules, left_out: set[Path]) -> Iterator[str]:
    rules = [*_rules(folder), *outer]
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name in _NEVER or path.absolute() in left_out or _ignored(path, rules):
                continue
            if is_folder:
                if not (path / _MARK_OF_ENVIRONMENT).exists():
                    yield from _names(path, root, rules, left_out)
            elif entry.is_file():
                yield path.relative_to(root).as_posix()


def _rules(folder: Path) -> _Rules:
    """The ignore files of a folder, those that have the last word first."""
    found = [folder / name for name in _IGNORE_FILES if (folder / name).is_file()]
    return [
        (folder, GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8").splitlines()))
        for file in found
    ]


def _ignored(path: Path, rules: _Rules) -> bool:
    """What the innermost file says that says anything."""
    end = "/" if path.is_dir() and not path.is_symlink() else ""
    for folder, spec in rules:
        said = spec.check_file(path.relative_to(folder).as_posix() + end).include
        if said is not None:
            return said
    return False


def _largest(sizes: dict[str, int]) -> str:
    most = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
    return ", ".join(f"{name} ({_mb(sizes[name])})" for name in most)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
