import json
import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import token_folders
from hypothesis import given
from hypothesis import strategies as st

from trainers.errors import DataError
from trainers.sequences import INDEX, TokenSequences


class Remote:
    """Opens shards of a folder and notes which."""

    def __init__(self, directory: Path, before: Callable[[str], None] = lambda file: None) -> None:
        self.opened: list[str] = []
        self.threads: set[int] = set()
        self._directory, self._before = directory, before

    def __call__(self, file: str) -> Path:
        if file == INDEX:
            return self._directory / file
        self.opened.append(file)
        self.threads.add(threading.get_ident())
        self._before(file)
        return self._directory / file


def numbers(sequences: TokenSequences, samples: object) -> list[int]:
    """What the tokens of the sequences say their numbers are."""
    rows = sequences.read(samples)
    assert (rows == rows[:, :1]).all()
    return [int(number) for number in rows[:, 0] - 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return token_folders.write(tmp_path, [(0, 3), (0, 3), (0, 3), (0, 3)])


def test_index_is_told(tmp_path: Path) -> None:
    token_folders.write(tmp_path, [(0, 2), (0, 3), (2, 4)], packing="best_fit", end_token=9)
    sequences = TokenSequences(tmp_path.joinpath, "train")
    assert len(sequences) == 9
    assert sequences.sizes == [5, 0, 4]
    assert sequences.block == 3
    assert sequences.targets_per_sequence == token_folders.LENGTH - 1
    assert sequences.text_tokens_per_sequence == token_folders.LENGTH - 1
    assert (sequences.sequence_length, sequences.vocab_size) == (token_folders.LENGTH, 60_000)
    assert (sequences.packing, sequences.end_token) == ("best_fit", 9)
    assert sequences.tokenizer == "ab" * 32


def test_block_is_the_mean_of_a_shard_rounded_up(tmp_path: Path) -> None:
    token_folders.write(tmp_path, [(0, 2), (0, 3)])
    assert TokenSequences(tmp_path.joinpath, "train").block == 3


def test_samples_are_numbered_source_after_source(tmp_path: Path) -> None:
    token_folders.write(tmp_path, [(1, 2), (0, 3), (1, 0), (0, 1)])
    assert numbers(TokenSequences(tmp_path.joinpath, "train"), range(6)) == [2, 3, 4, 5, 0, 1]


def test_parts_are_read_apart(tmp_path: Path) -> None:
    token_folders.write(tmp_path, [(0, 2), (0, 2)])
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "train-00000.bin").rename(tmp_path / "validation-00000.bin")
    index["shards"][0]["file"] = "validation-00000.bin"
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert numbers(TokenSequences(tmp_path.joinpath, "validation"), range(2)) == [0, 1]
    assert numbers(TokenSequences(tmp_path.joinpath, "train"), range(2)) == [2, 3]


def test_part_without_shards_is_empty(folder: Path) -> None:
    sequences = TokenSequences(folder.joinpath, "validation")
    assert len(sequences) == 0
    assert sequences.sizes == []
    assert sequences.block == 1
    assert sequences.targets_per_sequence == 0.0
    assert sequences.read([]).shape == (0, token_folders.LENGTH)
    with pytest.raises(IndexError):
        sequences.read([0])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any), st.data())
def test_samples_come_as_asked_for(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
) -> None:
    folder = token_folders.write(
        tmp_path_factory.mktemp("tokens"), [(0, count) for count in counts]
    )
    wanted = data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=20))
    keep = data.draw(st.none() | st.integers(1, 3))
    sequences = TokenSequences(folder.joinpath, "train", keep=keep)
    assert numbers(sequences, wanted) == wanted
    assert numbers(sequences, np.array(wanted, dtype=np.int64)) == wanted


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens_of_both_widths_are_read(tmp_path: Path, dtype: str) -> None:
    token_folders.write(tmp_path, [(0, 2)], dtype=dtype)
    largest = np.iinfo(dtype).max
    rows = np.full((2, token_folders.LENGTH), largest, dtype=dtype)
    rows.tofile(tmp_path / "train-00000.bin")
    found = TokenSequences(tmp_path.joinpath, "train").read([1])
    assert found.dtype == np.int64
    assert set(found.flat) == {largest}


@pytest.mark.parametrize("sample", [-1, 12])
def test_sample_that_does_not_exist_is_refused(folder: Path, sample: int) -> None:
    with pytest.raises(IndexError, match="of 12"):
        TokenSequences(folder.joinpath, "train").read([0, sample])


def test_index_of_another_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    token_folders.write(tmp_path, [(0, 2)], schema_version=1)
    with pytest.raises(DataError, match=r"index\.json has schema_version 1, .* reads 2; pack the"):
        TokenSequences(tmp_path.joinpath, "train")


@pytest.mark.parametrize("rows", [1, 5])
def test_shard_of_another_size_than_the_index_says_is_refused(folder: Path, rows: int) -> None:
    shard = folder / "train-00002.bin"
    np.zeros((rows, token_folders.LENGTH), dtype=np.uint16).tofile(shard)
    sequences = TokenSequences(folder.joinpath, "train")
    assert numbers(sequences, [0]) == [0]
    with pytest.raises(DataError, match=rf"train-00002\.bin has {rows * 8} bytes .* says 24"):
        sequences.read([6])


def test_shard_is_opened_when_first_read_and_once(folder: Path) -> None:
    remote = Remote(folder)
    sequences = TokenSequences(remote, "train")
    assert remote.opened == []
    for _ in range(2):
        assert numbers(sequences, [4, 10, 5]) == [4, 10, 5]
    assert remote.opened == ["train-00001.bin", "train-00003.bin"]


def test_least_recently_read_shard_is_let_go(folder: Path) -> None:
    remote = Remote(folder)
    sequences = TokenSequences(remote, "train", keep=2)
    for sample in (0, 3, 0, 6, 0, 3):
        assert numbers(sequences, [sample]) == [sample]
        assert len(sequences._open) <= 2
    assert [int(file[6:11]) for file in remote.opened] == [0, 1, 2, 1]


def test_prefetched_shards_are_opened_in_the_background_and_once(folder: Path) -> None:
    remote = Remote(folder)
    sequences = TokenSequences(remote, "train", keep=1)
    sequences.prefetch([range(5, 7), range(6, 8)])
    sequences._background.shutdown()
    assert remote.opened == ["train-00001.bin", "train-00002.bin"]
    assert threading.get_ident() not in remote.threads
    assert numbers(sequences, [3, 6]) == [3, 6]
    assert len(remote.opened) == 2


def test_shards_of_a_window_that_begins_stay_while_the_next_are_prefetched(folder: Path) -> None:
    remote = Remote(folder)
    sequences = TokenSequences(remote, "train", keep=2)
    sequences.prefetch([range(6)])
    wait(sequences._coming.values())
    sequences.prefetch([range(6, 12)])
    assert numbers(sequences, range(6)) == list(range(6))
    assert numbers(sequences, range(6, 12)) == list(range(6, 12))
    assert sorted(remote.opened) == [f"train-{number:05d}.bin" for number in range(4)]
    sequences.close()


def test_reader_does_not_wait_for_shards_it_does_not_read(folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(file: str) -> None:
        if file == "train-00000.bin":
            begun.set()
            assert go_on.wait(30)

    sequences = TokenSequences(Remote(folder, before), "train")
    sequences.prefetch([range(12)])
    assert begun.wait(30)
    assert numbers(sequences, range(3, 12)) == list(range(3, 12))
    go_on.set()
    assert numbers(sequences, range(3)) == [0, 1, 2]
    sequences.close()


def test_error_of_prefetching_is_raised_by_who_reads_the_shard_and_not_forever(
    folder: Path,
) -> None:
    broken = {"train-00001.bin"}

    def before(file: str) -> None:
        if file in broken:
            raise ConnectionError(file)

    sequences = TokenSequences(Remote(folder, before), "train")
    sequences.prefetch([range(12)])
    assert numbers(sequences, [0, 6, 9]) == [0, 6, 9]
    sequences.prefetch([range(12)])
    with pytest.raises(ConnectionError, match="train-00001"):
        sequences.read([3])
    broken.clear()
    assert numbers(sequences, [3]) == [3]
    sequences.close()


def test_closing_leaves_the_rest_unopened(folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(file: str) -> None:
        begun.set()
        assert go_on.wait(30)

    remote = Remote(folder, before)
    sequences = TokenSequences(remote, "train")
    sequences.prefetch([range(12)])
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    sequences.close()
    assert remote.opened == ["train-00000.bin"]
