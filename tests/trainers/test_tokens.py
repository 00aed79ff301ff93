import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainers import tokenizer, tokens
from trainers.config import Packing, TokenizerConfig
from trainers.errors import DataError
from trainers.tokens import PackedShard, ShardWork

LENGTH = 16
TEXTS = [" ".join(WORDS[start : start + 7]) for start in range(0, 700, 7)]
TEXTS += [
    "",
    "\n  indented\n    more",
    "na\u00efve \u4e2d\u6587 \U0001f600",
    " ",
    "  two  spaces  ",
]
SHARD = PackedShard(
    file="train-00000.bin",
    source=0,
    sequences=1,
    documents=1,
    tokens=16,
    end_tokens=1,
    padding=0,
    dropped_tokens=0,
    split_documents=0,
    text_bytes=50,
    targets=15,
    tokenizer="abc",
)


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(train=request.param, vocab_size=400)
    tokenizer.build(config, folder, TEXTS, LENGTH).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    config = TokenizerConfig(train="bpe", vocab_size=300)
    tokenizer.build(config, folder, TEXTS, LENGTH).save_pretrained(str(folder))
    return folder


def shard_of(
    folder: Path,
    loaded: Path,
    texts: list[str],
    packing: Packing = "concat",
    length: int = LENGTH,
) -> ShardWork:
    shard = folder / "train-00000.parquet"
    table = pa.table({"text": texts}, schema=pa.schema([("text", pa.string())]))
    pyarrow.parquet.write_table(table, shard)
    return ShardWork(shard, loaded, folder, length, packing, 3)


def rows_of(work: ShardWork, packed: PackedShard, dtype: Any = np.uint16) -> list[list[int]]:
    rows = np.fromfile(work.directory / packed.file, dtype).reshape(-1, work.sequence_length)
    assert len(rows) == packed.sequences
    found: list[list[int]] = rows.tolist()
    return found


def expected_ids(loaded: Path, texts: list[str]) -> tuple[list[list[int]], int]:
    """What `transformers` makes of the texts, and its end token."""
    auto = tokenizer.load(loaded)
    assert auto.eos_token_id is not None
    return auto(texts, add_special_tokens=False)["input_ids"], auto.eos_token_id


def write_index(directory: Path, shards: list[PackedShard], **settings: Any) -> dict[str, Any]:
    given = {
        "sequence_length": 16,
        "vocab_size": 100,
        "packing": "concat",
        "end_token": 0,
        "tokenizer": "abc",
    }
    return tokens.write_index(directory, shards, **{**given, **settings})


def test_concat_is_the_documents_one_behind_the_other(tmp_path: Path, kind: Path) -> None:
    work = shard_of(tmp_path, kind, TEXTS)
    packed = tokens.pack_shard(work)
    ids, end = expected_ids(kind, TEXTS)
    expected = [token for document in ids for token in [*document, end]]
    stream = [token for row in rows_of(work, packed) for token in row]
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) == packed.dropped_tokens < LENGTH
    assert packed.tokens == len(expected)
    assert packed.documents == len(TEXTS)


@pytest.mark.parametrize(
    "kind_of_text", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_corpus_made_elsewhere_gives_the_same_tokens(
    tmp_path: Path, bpe: Path, kind_of_text: pa.DataType
) -> None:
    work = shard_of(tmp_path, bpe, TEXTS)
    expected = rows_of(work, tokens.pack_shard(work))
    table = pa.table({"text": pa.array(TEXTS).cast(kind_of_text)})
    pyarrow.parquet.write_table(table, work.shard)
    assert rows_of(work, tokens.pack_shard(work)) == expected


def test_best_fit_has_every_document(tmp_path: Path, kind: Path) -> None:
    work = shard_of(tmp_path, kind, TEXTS, "best_fit", 64)
    packed = tokens.pack_shard(work)
    ids, end = expected_ids(kind, TEXTS)
    segments: list[list[int]] = []
    for row in rows_of(work, packed):
        for token in row:
            segments += [[]] if token == end else []
            segments[-1] += [] if token == end else [token]
    assert max(map(len, ids)) < 64  # so none is cut
    assert sorted(filter(None, segments)) == sorted(filter(None, ids))


def test_index_has_what_was_counted(tmp_path: Path, bpe: Path) -> None:
    work = shard_of(tmp_path, bpe, TEXTS, "best_fit", 64)
    packed = tokens.pack_shard(work)
    digest = tokenizer.digest(bpe)
    write_index(
        tmp_path,
        [packed],
        sequence_length=64,
        vocab_size=300,
        packing="best_fit",
        tokenizer=digest,
    )
    index = json.loads((tmp_path / "index.json").read_text())
    (shard,) = index.pop("shards")
    assert index == {
        "schema_version": 2,
        "sequence_length": 64,
        "vocab_size": 300,
        "dtype": "uint16",
        "packing": "best_fit",
        "end_token": 0,
        "tokenizer": digest,
    }
    ids, _ = expected_ids(bpe, TEXTS)
    assert shard["file"] == "train-00000.bin"
    assert shard["source"] == 3
    assert shard["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert shard["tokens"] == sum(len(document) + 1 for document in ids if document)
    assert shard["tokens"] + shard["padding"] == 64 * shard["sequences"]
    assert "tokenizer" not in shard


def test_end_token_spelled_out_in_a_text_is_ordinary_text(tmp_path: Path, kind: Path) -> None:
    _, end = expected_ids(kind, ["any"])
    work = shard_of(tmp_path, kind, ["of <|endoftext|> of", "<|endoftext|>" * 20], length=8)
    packed = tokens.pack_shard(work)
    rows = [token for row in rows_of(work, packed) for token in row]
    assert packed.dropped_tokens < 8
    assert packed.tokens > 40
    assert rows.count(end) <= 2


def words(folder: Path, **special: str) -> Path:
    vocabulary = {"<end>": 0, **{f"w{number}": number for number in range(1, 70_000)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(str(folder / "words"))
    return folder / "words"


def test_ids_above_two_bytes_survive(tmp_path: Path) -> None:
    loaded = words(tmp_path, eos_token="<end>", unk_token="<end>")
    work = shard_of(tmp_path, loaded, ["w69999 w1 w65536", "w5"], length=3)
    packed = tokens.pack_shard(work)
    assert rows_of(work, packed, np.uint32) == [[69999, 1, 65536], [0, 5, 0]]


def test_end_tokens_that_the_tokenizer_makes_are_left_out(tmp_path: Path) -> None:
    loaded = words(tmp_path, eos_token="<end>", unk_token="<end>")
    work = shard_of(tmp_path, loaded, ["w1 unknown w2 <end>", "<end>", "w3"], length=3)
    packed = tokens.pack_shard(work)
    assert rows_of(work, packed, np.uint32) == [[1, 2, 0], [0, 3, 0]]


def test_separator_stands_in_for_an_end_token(tmp_path: Path) -> None:
    loaded = words(tmp_path, sep_token="w9")
    work = shard_of(tmp_path, loaded, ["w1 w2", "w3"], length=5)
    assert rows_of(work, tokens.pack_shard(work), np.uint32) == [[1, 2, 9, 3, 9]]


def test_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    work = shard_of(tmp_path, words(tmp_path), ["w1"])
    with pytest.raises(DataError, match="names no eos_token or sep_token"):
        tokens.pack_shard(work)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer"):
        tokens.pack_shard(shard_of(tmp_path, tmp_path / "nothing", ["a"]))


def test_memory_does_not_grow_with_the_shards(tmp_path: Path, bpe: Path) -> None:
    distinct = [" ".join(f"word{n}" for n in range(i, i + 100)) for i in range(0, 12_000, 100)]
    work = shard_of(tmp_path, bpe, distinct)
    process = psutil.Process()
    sizes = []
    for _ in range(25):
        tokens.pack_shard(work)
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[9] < 15_000_000  # a tokenizer leaves some megabytes behind


def test_shard_without_documents_gives_no_sequences(tmp_path: Path, bpe: Path) -> None:
    for packing in ("concat", "best_fit"):
        packed = tokens.pack_shard(shard_of(tmp_path, bpe, [], packing))
        assert (packed.sequences, packed.documents, packed.tokens) == (0, 0, 0)


def test_documents_in_parts_have_the_ids_of_the_whole(
    tmp_path: Path, kind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(WORDS[:900]), "x  y\n   z \u3000 a\u00a0 b  " * 80, *TEXTS]
    whole = tokens.pack_shard(work := shard_of(tmp_path, kind, texts))
    expected = rows_of(work, whole)
    monkeypatch.setattr(tokens, "_PART_BYTES", 90)
    monkeypatch.setattr(tokens, "_BATCH_BYTES", 200)
    assert tokens.pack_shard(work) == whole
    assert rows_of(work, whole) == expected


def test_packing_is_light(tmp_path: Path, bpe: Path) -> None:
    text = " ".join(WORDS * (2_000_000 // len(" ".join(WORDS)) + 1))  # a gigabyte, if not cut
    work = shard_of(tmp_path, bpe, [text])
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from trainers.tokens import ShardWork, pack_shard\n"
        f"pack_shard(ShardWork(Path({str(work.shard)!r}), Path({str(work.tokenizer)!r}), "
        f"Path({str(tmp_path)!r}), 16, 'concat', 0))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.partition('VmHWM:')[2].split()[0]) // 1024)\n"
        "print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    peak_mib, heavy = answer.stdout.split("\n")[:2]
    assert int(peak_mib) < 200
    assert heavy == ""


def test_token_takes_two_bytes_where_ids_allow(tmp_path: Path, bpe: Path) -> None:
    packed = tokens.pack_shard(shard_of(tmp_path, bpe, TEXTS))
    size = (tmp_path / packed.file).stat().st_size
    assert size == 2 * LENGTH * packed.sequences


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_width_follows_from_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    assert write_index(tmp_path, [SHARD], vocab_size=vocab_size)["dtype"] == dtype


def test_less_text_than_one_sequence_is_refused(tmp_path: Path) -> None:
    short = replace(SHARD, sequences=0, tokens=9)
    with pytest.raises(DataError, match="9 tokens, less than one training sequence of 16"):
        write_index(tmp_path, [short])


def test_shard_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-00000.bin was packed with tokenizer abc, but .* d"):
        write_index(tmp_path, [SHARD], tokenizer="d")
    assert not (tmp_path / "index.json").exists()
