import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainers import tokenizer, tokens
from trainers.config import TokenizerConfig
from trainers.errors import DataError
from trainers.tokens import PackedShard, ShardWork, TokenSequences

TEXTS = [" ".join(WORDS[start : start + 7]) for start in range(0, 700, 7)]


@pytest.fixture
def work(tmp_path: Path) -> ShardWork:
    config = TokenizerConfig(train="bpe", vocab_size=300)
    tokenizer.build(config, tmp_path, TEXTS, 16).save_pretrained(str(tmp_path / "tokenizer"))
    shard = tmp_path / "train-00000.parquet"
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), shard)
    return ShardWork(shard, tmp_path / "tokenizer", tmp_path, 16)


def test_sequences_are_the_documents_one_behind_the_other(work: ShardWork) -> None:
    packed = tokens.pack_shard(work)
    tokens.write_index(work.directory, [packed], sequence_length=16, vocab_size=300)
    loaded = tokenizer.load(work.tokenizer)
    expected = [
        token
        for text in TEXTS
        for token in [*loaded(text, add_special_tokens=False)["input_ids"], loaded.eos_token_id]
    ]
    sequences = TokenSequences(work.directory, "train")
    stream = sequences.read(range(len(sequences))).reshape(-1).tolist()
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) == packed.dropped_tokens < 16
    assert packed.tokens == len(expected)
    assert packed.documents == len(TEXTS)


def test_token_takes_two_bytes_where_ids_allow(work: ShardWork) -> None:
    packed = tokens.pack_shard(work)
    size = (work.directory / packed.file).stat().st_size
    assert size == 2 * 16 * packed.sequences


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_width_follows_from_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    shard = PackedShard("train-00000.bin", 1, 1, 16, 0)
    tokens.write_index(tmp_path, [shard], sequence_length=16, vocab_size=vocab_size)
    assert json.loads((tmp_path / "index.json").read_text())["dtype"] == dtype


def test_samples_are_numbered_through_all_shards(tmp_path: Path) -> None:
    shards = []
    for number, count in enumerate((2, 0, 3)):
        file = f"train-{number:05d}.bin"
        rows = np.full((count, 4), 10 * number) + np.arange(count)[:, None]
        rows.astype(np.uint16).tofile(tmp_path / file)
        shards.append(PackedShard(file, count, count, 4 * count, 0))
    tokens.write_index(tmp_path, shards, sequence_length=4, vocab_size=100)
    sequences = TokenSequences(tmp_path, "train")
    assert len(sequences) == 5
    assert sequences.read([0, 1, 2, 3, 4])[:, 0].tolist() == [0, 1, 20, 21, 22]


def test_less_text_than_one_sequence_is_refused(tmp_path: Path) -> None:
    shards = [PackedShard("train-00000.bin", 0, 1, 9, 9)]
    with pytest.raises(DataError, match="9 tokens, less than one training sequence of 16"):
        tokens.write_index(tmp_path, shards, sequence_length=16, vocab_size=100)


def test_ids_above_two_bytes_survive(tmp_path: Path) -> None:
    vocabulary = {"<end>": 0, **{f"w{number}": number for number in range(1, 70_000)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", unk_token="<end>"
    ).save_pretrained(str(tmp_path / "words"))
    shard = tmp_path / "train-00000.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["w69999 w1 w65536", "w5"]}), shard)
    packed = tokens.pack_shard(ShardWork(shard, tmp_path / "words", tmp_path, 3))
    tokens.write_index(tmp_path, [packed], sequence_length=3, vocab_size=70_000)
    sequences = TokenSequences(tmp_path, "train")
    assert sequences.read([0, 1]).tolist() == [[69999, 1, 65536], [0, 5, 0]]


def test_parts_are_read_apart(tmp_path: Path) -> None:
    shards = []
    for name, first in [("train", 1), ("validation", 50)]:
        file = f"{name}-00000.bin"
        np.full((2, 4), first, dtype=np.uint16).tofile(tmp_path / file)
        shards.append(PackedShard(file, 2, 2, 8, 0))
    tokens.write_index(tmp_path, shards, sequence_length=4, vocab_size=100)
    assert set(TokenSequences(tmp_path, "train").read([0, 1]).flat) == {1}
    assert set(TokenSequences(tmp_path, "validation").read([0, 1]).flat) == {50}
    assert len(TokenSequences(tmp_path, "test")) == 0
