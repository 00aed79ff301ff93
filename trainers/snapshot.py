"""States written to files in the background, out of buffers that are used again.

Weights and optimizer state change only when the optimizer updates them. So even the copy into the
buffers runs beside the next forward and backward pass; whoever updates calls `wait_until_copied`.
The first copy of 256 MB takes 0.7 s on a CPU, nearly all of it for fresh memory, the next 0.02 s:
hence buffers that stay.
"""

import copy
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from trainers.checkpoint import sync_folder

Facts = dict[str, dict[str, Any]]
"""Size and SHA-256 of files, by path relative to the checkpoint's folder."""


class SnapshotError(RuntimeError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class _File:
    path: Path
    state: Any
    """With buffers where the tensors were."""


class Snapshots:
    """Copies and writes one rank's states while training goes on; one set of them at a time.

    `add` every state, then `begin`.
    """

    def __init__(self) -> None:
        self.stall_s = 0.0
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._files: list[_File] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._copied = threading.Event()
        self._copied.set()
        self._written = threading.Event()
        self._written.set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def add(self, state: Any, path: Path) -> None:
        """Have a state written to `path`; its tensors must not change until they are copied."""
        assert self._thread is None, "the snapshot before is still under way"
        self._files.append(_File(path, self._with_buffers(state, path.name)))

    def begin(
        self, root: Path, written: Callable[[Facts], None], then: Callable[[], None] | None = None
    ) -> None:
        """Copy and write what was added, in the background.

        Args:
            root: facts of files are told by their path relative to this.
            written: gets the facts of the files that are now on the disk.
            then: called after that; `wait_until_written` does not wait for it.
        """
        on_gpu = any(source.is_cuda for _, source in self._copies)
        ready = torch.cuda.current_stream().record_event() if on_gpu else None
        self._copied.clear()
        self._written.clear()
        self._thread = threading.Thread(
            target=self._run, args=(root, written, then, ready), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait_until_copied(self) -> None:
        """Return once the states may change."""
        if not self._copied.is_set():
            started = time.monotonic()
            self._copied.wait()
            self.stall_s += time.monotonic() - started

    def wait_until_written(self) -> None:
        """Return once the files are on the disk.

        Raises:
            SnapshotError: they could not be written.
        """
        self._written.wait()
        if self._error is not None:
            raise SnapshotError(
                f"a checkpoint could not be written: {self._error}"
            ) from self._error

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for what was begun, and for its `then`."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def finish(self) -> None:
        """Wait for what was begun, and raise what went wrong in it, once.

        Raises:
            SnapshotError: it could not be written.
        """
        self.join()
        self._thread = None
        try:
            self.wait_until_written()
        finally:
            self._error = None

    def _with_buffers(self, item: Any, file: str) -> Any:
        places: dict[tuple[Any, ...], Tensor] = {}

        def walk(item: Any) -> Any:
            if isinstance(item, Tensor):
                # Tensors that share memory, as tied weights do, share it in the file too.
                key = (item.data_ptr(), item.shape, item.stride(), item.dtype, item.device)
                if item.numel() == 0:
                    return item.detach().clone()
                if key not in places:
                    places[key] = self._buffer((file, len(places)), item)
                    self._copies.append((places[key], item.detach()))
                return places[key]
            if isinstance(item, dict):
                copied = copy.copy(item)
                copied.update({name: walk(value) for name, value in item.items()})
                return copied
            if type(item) in (list, tuple):
                return type(item)(walk(value) for value in item)
            return copy.deepcopy(item)

        return walk(item)

    def _buffer(self, place: tuple[str, int], source: Tensor) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (source.shape, source.dtype):
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._buffers[place] = buffer
        return buffer

    def _run(
        self,
        root: Path,
        written: Callable[[Facts], None],
        then: Callable[[], None] | None,
        ready: Any,
    ) -> None:
        files, self._files = self._files, []
        try:
            try:
                self._copy(ready)
            finally:
                self._copies = []
                self._copied.set()
            written({f.path.relative_to(root).as_posix(): write(f.state, f.path) for f in files})
            self._written.set()
            if then is not None:
                then()
        except BaseException as error:
            self._error = error
        finally:
            self._written.set()

    def _copy(self, ready: Any) -> None:
        if ready is None:
            for buffer, source in self._copies:
                buffer.copy_(source)
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            for buffer, source in self._copies:
                buffer.copy_(source, non_blocking=True)
        stream.synchronize()


class _Digesting:
    """A file that `torch.save` writes, digested on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        written = self._file.write(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()


def write(state: Any, path: Path) -> dict[str, Any]:
    """Save a state durably; its file's size and SHA-256."""
    # Through a file object, torch lets other threads run while it writes; given a path, it does
    # not for up to 0.08 s of 256 MB.
    with path.open("wb") as file:
        digesting = _Digesting(file)
        torch.save(state, digesting)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return {"size": digesting.size, "sha256": digesting.digest.hexdigest()}
