import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import WORDS, save_base

from trainers import document_losses, tokenizer
from trainers.config import TokenizerConfig
from trainers.document_losses import DocumentLosses, LossWork, held_out, measure
from trainers.errors import DataError
from trainers.task_inputs import TrialExecution

TEXTS = ("the first document", "a", " ".join(WORDS[:60]), "and one more, which is longer")
EXECUTION = TrialExecution(threads=1, use_gpu=False)


def work(folder: Path, **changes: Any) -> LossWork:
    told = {"objective": "causal", "sequence_length": 16, "documents": TEXTS} | changes
    return LossWork(folder, execution=EXECUTION, **told)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    save_base(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("encoder")
    config = TokenizerConfig(train="wordpiece", vocab_size=300)
    tokenizer.build(config, folder, [" ".join(WORDS[:2000])], 64).save_pretrained(folder)
    torch.manual_seed(0)
    network = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    BertForMaskedLM(network).save_pretrained(folder)
    return folder


def ids_of(folder: Path, text: str) -> tuple[list[int], int]:
    plain, end = tokenizer.plain(folder)
    return plain.encode(text, add_special_tokens=False).ids, end


def test_each_token_is_predicted_from_those_before_it_in_its_piece(decoder: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = measure(work(decoder))
    network = AutoModelForCausalLM.from_pretrained(decoder).eval()
    for text, nats, size in zip(TEXTS, found.nats, found.counts, strict=True):
        ids, end = ids_of(decoder, text)
        expected = 0.0
        for first in range(0, len(ids), 16):
            piece = ids[first : first + 16]
            with torch.no_grad():
                logits = network(torch.tensor([[end, *piece[:-1]]])).logits[0]
            chosen = logits.log_softmax(-1)[torch.arange(len(piece)), piece]
            expected -= float(chosen.sum())
        assert nats == pytest.approx(expected, rel=1e-5)
        assert size == len(text.encode())
    whole = found.score_of(found.nats)(np.ones((1, len(TEXTS))))[0]
    assert whole == pytest.approx(found.nats.sum() / math.log(2) / found.counts.sum())


def test_the_constant_knows_the_frequencies_and_no_more(decoder: Path) -> None:
    found = measure(work(decoder))
    tokens = [ids_of(decoder, text)[0] for text in TEXTS]
    counts = Counter(token for of_document in tokens for token in of_document)
    expected = [
        -sum(math.log(counts[token] / counts.total()) for token in of_document)
        for of_document in tokens
    ]
    assert found.constant_nats == pytest.approx(expected)


def test_a_document_loses_the_same_whatever_is_read_beside_it(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measure(work(decoder))
    monkeypatch.setattr(document_losses, "_LOGITS_AT_ONCE", 1)  # piece by piece
    assert measure(work(decoder)).nats == pytest.approx(together.nats, rel=1e-5)


def test_bits_per_byte_compare_between_tokenizers_only_where_none_loses_text(
    decoder: Path, tmp_path: Path
) -> None:
    assert measure(work(decoder)).unit == "bits_per_byte"
    save_base(tmp_path)
    config = TokenizerConfig(train="bpe", vocab_size=300, lowercase=True)
    tokenizer.build(config, tmp_path, [" ".join(WORDS[:2000])], 64).save_pretrained(tmp_path)
    found = measure(work(tmp_path, documents=(*TEXTS, "Capitals")))
    assert found.unit.startswith("bits_per_byte of texts as its tokens tell them")
    assert found.metric == "bits_per_byte"
    other = TokenizerConfig(train="bpe", vocab_size=280, lowercase=True)
    tokenizer.build(other, tmp_path, [" ".join(WORDS[:900])], 64).save_pretrained(tmp_path)
    again = measure(work(tmp_path, documents=(*TEXTS, "Capitals")))
    assert again.unit == found.unit  # it loses the same
    assert not np.allclose(again.nats, found.nats)


def test_what_is_hidden_depends_on_the_document_alone(encoder: Path) -> None:
    short, long = (measure(work(encoder, objective="masked", sequence_length=n)) for n in (8, 64))
    expected = [max(1, round(0.15 * len(ids_of(encoder, text)[0]))) for text in TEXTS]
    assert short.counts.tolist() == long.counts.tolist() == expected
    assert short.constant_nats == pytest.approx(long.constant_nats)
    assert not np.allclose(short.nats, long.nats)  # what is around a hidden token differs
    assert long.metric == "nats_per_hidden_token"
    assert short.unit == long.unit


def test_hidden_tokens_are_predicted_from_both_sides(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(work(encoder, objective="masked", sequence_length=64))
    monkeypatch.setattr(document_losses, "_LOGITS_AT_ONCE", 1)
    alone = measure(work(encoder, objective="masked", sequence_length=64))
    assert alone.nats == pytest.approx(found.nats, rel=1e-5)  # padding is not looked at
    last = measure(work(encoder, objective="masked", sequence_length=64, documents=TEXTS[:2]))
    assert last.nats == pytest.approx(found.nats[:2], rel=1e-5)


def test_a_network_that_sees_the_next_token_is_refused(encoder: Path) -> None:
    with pytest.raises(DataError, match="bert sees the tokens that it is to predict"):
        measure(work(encoder))


def test_a_folder_without_the_head_is_refused(encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    AutoModel.from_pretrained(encoder).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="lack weights of a model with objective: masked"):
        measure(work(tmp_path, objective="masked"))


def test_no_piece_is_longer_than_a_network_has_positions(decoder: Path) -> None:
    most = measure(work(decoder, sequence_length=64))
    assert measure(work(decoder, sequence_length=1000)).nats == pytest.approx(most.nats)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen3"])
def test_decoders_of_other_families_lose_the_same_alone_and_together(
    decoder: Path, tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(decoder, tmp_path, dirs_exist_ok=True)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if architecture == "qwen3":
        small["num_key_value_heads"] = 2
    network = AutoConfig.for_model(architecture, vocab_size=300, bos_token_id=0, **small)
    AutoModelForCausalLM.from_config(network).save_pretrained(tmp_path)
    together = measure(work(tmp_path))
    monkeypatch.setattr(document_losses, "_LOGITS_AT_ONCE", 1)
    assert measure(work(tmp_path)).nats == pytest.approx(together.nats, rel=1e-5)


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_encoders_of_other_families_read_pieces_as_long_as_they_have_positions(
    encoder: Path, tmp_path: Path, architecture: str
) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    network = AutoConfig.for_model(
        architecture,
        vocab_size=300,
        num_attention_heads=2,
        max_position_embeddings=18,
        pad_token_id=1,
        **small,
    )
    AutoModelForMaskedLM.from_config(network).save_pretrained(tmp_path)
    found = measure(work(tmp_path, objective="masked", sequence_length=64))
    assert np.isfinite(found.nats).all()
    assert (found.nats > 0).all()


def write_shard(path: Path, texts: list[str]) -> Path:
    pyarrow.parquet.write_table(pa.table({"text": texts}), path)
    return path


def test_the_same_documents_are_held_out_however_the_corpus_is_cut(tmp_path: Path) -> None:
    texts = [f"document {number} of the corpus" for number in range(20)]
    one = [write_shard(tmp_path / "one.parquet", [*texts, "  ", ""])]
    two = [
        write_shard(tmp_path / "a.parquet", texts[12:]),
        write_shard(tmp_path / "b.parquet", texts[:12]),
    ]
    found = held_out(one, documents=5, characters=11)
    assert len(found) == 5
    assert found == held_out(two, documents=5, characters=11)
    assert all(len(text) == 11 for text in found)
    assert len(held_out(one, documents=100, characters=4096)) == 20
    assert held_out(one, documents=100, characters=8) == ["document"]  # equal ones once
    assert document_losses.digest(found) != document_losses.digest(found[::-1])
    assert document_losses.digest(["ab", "c"]) != document_losses.digest(["a", "bc"])


def test_losses_are_read_as_they_were_written(decoder: Path, tmp_path: Path) -> None:
    found = measure(work(decoder))
    document_losses.write(tmp_path / document_losses.FILE, found)
    read = document_losses.read((tmp_path / document_losses.FILE).read_bytes())
    assert (read.unit, read.documents) == (found.unit, document_losses.digest(TEXTS))
    for name in ("nats", "constant_nats", "counts"):
        assert getattr(read, name).tolist() == getattr(found, name).tolist()


def test_of_no_documents_there_is_nothing_to_tell(decoder: Path) -> None:
    found: DocumentLosses = measure(work(decoder, documents=()))
    assert len(found.nats) == len(found.counts) == 0
