"""A corpus in pieces of about equal size, each of which can be read on its own."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

from trainers import files, tables
from trainers.config import SourceConfig

END = sys.maxsize
"""As the stop of a span: up to the end of the file, however long it is."""


@dataclass(frozen=True)
class Span:
    """Part of a file: the documents that begin at or behind `start` and before `stop`.

    The unit is bytes for `lines`, `paragraphs` and `jsonl`, row groups for Parquet, rows for a
    folder of `datasets`, the shards of its own for a data set that is streamed. A file that cannot
    be cut is one span from 0 to `END`.
    """

    file: str
    """Absolute path, URL or hub name."""

    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """Documents that one worker reads: a few files, or a part of one."""

    source: SourceConfig
    number: int
    """Of the source among those of the corpus."""

    spans: tuple[Span, ...]

    def relative_to(self, folder: Path) -> "Shard":
        """The same with names of files below a folder, for where that has another place."""
        return self._with_files(lambda file: str(Path(file).relative_to(folder)))

    def below(self, folder: Path) -> "Shard":
        """The same with names made absolute again."""
        return self._with_files(lambda file: str(folder / file))

    def _with_files(self, name: Callable[[str], str]) -> "Shard":
        return replace(self, spans=tuple(replace(s, file=name(s.file)) for s in self.spans))


def cut(source: SourceConfig, number: int, places: Sequence[str], shard_bytes: int) -> list[Shard]:
    """The files of a source in shards of about `shard_bytes`, documents in the files' order.

    Large files are cut where their format allows it, small ones put together. Follows from the
    arguments and the files alone.

    Raises:
        DataError: a file is missing or its store cannot be asked.
    """
    shards: list[Shard] = []
    held: list[Span] = []
    held_bytes = 0
    for span, size_bytes in _pieces(source, places, shard_bytes):
        if held and held_bytes + size_bytes > shard_bytes:
            shards.append(Shard(source, number, tuple(held)))
            held, held_bytes = [], 0
        held.append(span)
        held_bytes += size_bytes
    if held:
        shards.append(Shard(source, number, tuple(held)))
    return shards


def _pieces(
    source: SourceConfig, places: Sequence[str], shard_bytes: int
) -> Iterator[tuple[Span, int]]:
    if source.format == "dataset":
        for place in places:
            yield from _data_set(source, place, shard_bytes)
        return
    for place, size_bytes in zip(places, _sizes(places), strict=True):
        if size_bytes is None:
            # Nobody knows how much it is: it stands alone.
            yield Span(place, 0, END), shard_bytes
        elif source.format == "parquet":
            yield from _parquet(place, size_bytes, shard_bytes)
        elif _is_cut_by_bytes(source, place):
            count = max(1, round(size_bytes / shard_bytes))
            borders = [size_bytes * index // count for index in range(count + 1)]
            yield from ((Span(place, a, b), b - a) for a, b in pairwise(borders))
        else:
            yield Span(place, 0, END), size_bytes


def _is_cut_by_bytes(source: SourceConfig, place: str) -> bool:
    if source.format not in {"lines", "paragraphs", "jsonl"} or not files.can_seek(place):
        return False
    files.check_encoding(place, source.encoding)
    return files.has_byte_lines(source.encoding)


def _parquet(place: str, size_bytes: int, shard_bytes: int) -> Iterator[tuple[Span, int]]:
    groups = tables.row_group_bytes(place) if size_bytes > shard_bytes else None
    if not groups:
        yield Span(place, 0, END), size_bytes
        return
    yield from _grouped(place, groups, shard_bytes)


def _data_set(source: SourceConfig, place: str, shard_bytes: int) -> Iterator[tuple[Span, int]]:
    if not tables.is_saved(place):
        count = tables.num_streams(source, place)
        yield from ((Span(place, index, index + 1), shard_bytes) for index in range(count))
        return
    rows = tables.num_rows(place)
    size_bytes = sum(path.stat().st_size for path in Path(place).glob("*.arrow"))
    if not rows:
        yield Span(place, 0, END), size_bytes
        return
    count = min(rows, max(1, round(size_bytes / shard_bytes)))
    borders = [rows * index // count for index in range(count + 1)]
    yield from ((Span(place, a, b), size_bytes // count) for a, b in pairwise(borders))


def _grouped(place: str, sizes: Sequence[int], limit: int) -> Iterator[tuple[Span, int]]:
    """Neighbouring units together as long as they stay within the limit."""
    start, held = 0, 0
    for index, size in enumerate(sizes):
        if index > start and held + size > limit:
            yield Span(place, start, index), held
            start, held = index, 0
        held += size
    yield Span(place, start, len(sizes)), held


def _sizes(places: Sequence[str]) -> Iterable[int | None]:
    """Bytes of files; those of one remote store are asked for at once."""
    for scheme, group in groupby(places, files.scheme_of):
        if scheme is None:
            yield from map(files.local_size, group)
        else:
            yield from files.sizes(list(group))
