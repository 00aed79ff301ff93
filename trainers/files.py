"""Files wherever they are: local or behind a URL, compressed or not, as bytes or as lines."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

import fsspec
import zstandard

from trainers.errors import DataError

Tell = Callable[[str], None]
"""Takes the message about something malformed; it raises where that is not to be left out."""

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)
"""What reading compressed data raises that are cut or damaged."""

MARK = "trainers.files.mark"
"""An error handler of codecs: bytes that are no text become `MARKED`, which no text contains."""

MARKED = "\udc80"

STDIN = "/dev/stdin"
"""The place that is standard input."""

_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://")
_BUFFER_BYTES = 1 << 20
_READ_AHEAD_BYTES = 8 << 20
_COUNTED_BYTES = 1 << 30
_BOM = "\ufeff"

codecs.register_error(MARK, lambda error: (MARKED, cast("UnicodeDecodeError", error).end))


def scheme_of(place: str) -> str | None:
    """The scheme of a URL; None for a local path."""
    found = _SCHEME.match(place)
    return found[1] if found else None


def find(url: str) -> dict[str, Mapping[str, Any]]:
    """The files a URL, possibly a glob, stands for, sorted, with what their store says of them.

    Raises:
        DataError: the store cannot be asked.
    """
    filesystem = _filesystem(url)
    # In the address of a web page a question mark begins the query.
    magic = "*[" if _is_web(url) else "*?["
    with _told(url):
        filesystem.invalidate_cache()
        if not any(character in url for character in magic):
            facts = info(url)
            return {url: facts} if facts["type"] == "file" else {}
        found = filesystem.glob(url, detail=True)
    return {
        _as_url(match, url, filesystem): facts
        for match, facts in sorted(found.items())
        if facts["type"] == "file"
    }


def info(url: str) -> Mapping[str, Any]:
    """What a store says of a file.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    with _told(url):
        return cast("Mapping[str, Any]", _filesystem(url).info(url))


def sizes(urls: Sequence[str]) -> list[int | None]:
    """Bytes of remote files of one store; None where it does not say.

    Raises:
        DataError: the store cannot be asked.
    """
    with _told(urls[0]):
        return list(_filesystem(urls[0]).sizes(list(urls)))


def local_size(path: str) -> int:
    """Bytes of a local file.

    Raises:
        DataError: there is none.
    """
    with _told(path):
        return Path(path).stat().st_size


def is_compressed(place: str) -> bool:
    """Whether a file's name says that it must be decompressed."""
    return _suffix(place) in {".gz", ".zst"}


def can_seek(place: str) -> bool:
    """Whether reading may begin in the middle of a file; not every web server lets it."""
    return not is_compressed(place) and not _is_web(place)


def opened(place: str, *, streamed: bool = False) -> IO[bytes]:
    """The bytes of a file as they are stored.

    Args:
        place: a local path or a URL.
        streamed: it is read from the beginning to the end, which every web server can do.

    Raises:
        DataError: it cannot be opened; reading raises it as well, so that what is wrong with a
            disk, a network or a permission is never taken for what is wrong with the data.
    """
    return cast("IO[bytes]", io.BufferedReader(_Stored(place, streamed), _BUFFER_BYTES))


@contextmanager
def plain(place: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by its suffix.

    Raises:
        DataError: as `opened`. Reading raises one of `DAMAGE` where compressed data are cut.
    """
    with opened(place, streamed=not can_seek(place)) as stored:
        match _suffix(place):
            case ".gz":
                with gzip.GzipFile(fileobj=stored) as file:
                    yield cast("IO[bytes]", file)
            case ".zst":
                yield cast("IO[bytes]", io.BufferedReader(_ZstdFile(stored), _BUFFER_BYTES))
            case _:
                yield stored


def codec(encoding: str) -> str:
    """The codec that reads an encoding: a byte-order mark before UTF-8 is no part of the text.

    Spreadsheets write one; it would stand in the first column's name.

    Raises:
        LookupError: there is no such encoding.
    """
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def has_byte_lines(encoding: str) -> bool:
    r"""Whether the byte `\n` is a line end in an encoding, wherever it stands.

    Not so in UTF-16 and UTF-32, in EBCDIC, and where escapes change what bytes mean.

    Raises:
        LookupError: there is no such encoding.
    """
    name = codecs.lookup(encoding).name
    if name.startswith(("utf-7", "iso2022", "hz")):
        return False
    return name == "utf-8-sig" or "\n".encode(name) == b"\n"


def check_encoding(place: str, encoding: str) -> None:
    """Raise DataError where there is no such encoding."""
    try:
        "".encode(encoding)
    except LookupError as error:
        raise DataError(f"{place}: unknown encoding {encoding!r}") from error


def not_in(encoding: str) -> str:
    """What to say of bytes that are no text in an encoding."""
    return f"not {encoding}; set encoding to the file's own, for example encoding: latin-1"


class Lines:
    r"""Lines of a file with their ends (`\n`), from the first that begins at or behind `start`.

    Bytes that are no text are `MARKED` in them; `is_sound` tells of them. Compressed data that are
    cut, and a whole file without any text, are told of as well.
    """

    def __init__(self, place: str, encoding: str, tell: Tell, start: int = 0) -> None:
        """Nothing is opened before the first line is asked for."""
        check_encoding(place, encoding)
        self.place, self.encoding = place, encoding
        self.position = start
        """Byte at which the current line begins; of no use in encodings without byte lines."""
        self._tell, self._start = tell, start
        self._first = start
        self._index = 0
        self._lines_before = 0 if start == 0 else None

    def __iter__(self) -> Iterator[str]:
        is_blank = self._start == 0
        is_plain = has_byte_lines(self.encoding)
        name = codecs.lookup(self.encoding).name if is_plain else "utf-8"
        name = name.removesuffix("-sig")
        try:
            with plain(self.place) as file:
                self.position = self._first = _seek_line(file, self._start)
                for line in file if is_plain else _in_utf8(file, self.encoding):
                    text = line.decode(name, MARK)
                    if self.position == 0:
                        text = text.removeprefix(_BOM)
                    is_blank = is_blank and not text.strip()
                    yield text
                    self._index += 1
                    self.position += len(line)
        except DAMAGE as error:
            after = "its beginning" if self._index == 0 else f"line {self._index}"
            self._tell(f"{self.place}: cannot be read after {after}: {error}")
            return
        if is_blank:
            self._tell(f"{self.place}: there is no text in it")

    def where(self) -> str:
        """The current line's number in the file; far behind its beginning the line's byte."""
        if self._first > _COUNTED_BYTES:
            return f"line at byte {self.position}"
        if self._lines_before is None:
            self._lines_before = _count_lines(self.place, self._first)
        return f"line {self._lines_before + self._index + 1}"

    def is_sound(self, line: str) -> bool:
        """Whether the current line is text throughout; tells of one that is not."""
        if MARKED not in line:
            return True
        self._tell(f"{self.place}, {self.where()}: {not_in(self.encoding)}")
        return False


def _seek_line(file: IO[bytes], start: int) -> int:
    """Go to the first line that begins at or behind a byte, and return where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    position = start - 1
    while part := file.readline(_BUFFER_BYTES):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


def _count_lines(place: str, stop: int) -> int:
    count = 0
    with opened(place) as file:
        while stop > 0 and (chunk := file.read(min(stop, _BUFFER_BYTES))):
            count += chunk.count(b"\n")
            stop -= len(chunk)
    return count


def _in_utf8(file: IO[bytes], encoding: str) -> Iterator[bytes]:
    """Lines of any encoding as UTF-8; what is marked is no UTF-8, and so is marked again."""
    for line in io.TextIOWrapper(file, encoding, MARK, newline="\n"):
        yield line.encode("utf-8", "surrogatepass")


def _suffix(place: str) -> str:
    path = urlsplit(place).path if _is_web(place) else place
    name = path.rpartition("/")[2].lower()
    return "." + name.rpartition(".")[2]


def _is_web(place: str) -> bool:
    return scheme_of(place) in {"http", "https"}


def _as_url(match: str, url: str, filesystem: Any) -> str:
    """A match of a glob as a URL; `container@account` of Azure is not in what its client says."""
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if "@" in authority and scheme != "hf":
        return f"{scheme}://{authority}/{match.partition('/')[2]}"
    return str(filesystem.unstrip_protocol(match))


def _filesystem(url: str) -> Any:
    options: dict[str, Any] = {}
    with _told(url):
        if _is_web(url):
            import aiohttp

            # The default ends a download after five minutes, however well it goes.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=60)}
        return fsspec.core.url_to_fs(url, **options)[0]


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Turn what the system or a client raises into one message to act on."""
    scheme = scheme_of(place)
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        extra = _EXTRAS.get(scheme or "")
        way_out = f"; install it with pip install 'pretune[{extra}]'" if extra else ""
        raise DataError(f"{place}: {error}{way_out}") from error
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{place}: is a folder; name its files, for example {place}/*") from error
    except Exception as error:
        if scheme is None and not isinstance(error, OSError):
            raise
        # Clients of object stores raise types of their own for credentials and connections.
        raise DataError(
            f"{place}: cannot be read: {type(error).__name__}: {error}; this lies not in its "
            "content but in the address, the credentials, the network or the disk"
        ) from error


class _Stored(io.RawIOBase):
    """A file's bytes; everything that goes wrong with getting them is a DataError."""

    def __init__(self, place: str, streamed: bool) -> None:
        self._place = place
        with _told(place):
            if scheme_of(place) is None:
                # Opened by its name, a file that was redirected would begin anew.
                file, is_own = (0, False) if place == STDIN else (place, True)
                self._file: Any = open(file, "rb", buffering=0, closefd=is_own)  # noqa: SIM115
            else:
                block = 0 if streamed and _is_web(place) else _READ_AHEAD_BYTES
                self._file = _filesystem(place).open(
                    place, "rb", block_size=block, cache_type="readahead"
                )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _told(self._place):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = 0) -> int:
        with _told(self._place):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


class _ZstdFile(io.RawIOBase):
    """A Zstandard file of one or more frames; zstandard's own reader takes a cut one for whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = _new_frame()
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._file.read(1 << 16)
            if not compressed and self._frame.eof:
                return 0
            if not compressed:
                raise EOFError("the compressed data end too early")
            if self._frame.eof:
                self._frame = _new_frame()
            self._plain = memoryview(self._frame.decompress(compressed))
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count


def _new_frame() -> Any:
    # Large corpora are often written with --long=31, which must be allowed explicitly.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
