"""How well a language model predicts single documents: what two of them are compared on."""

import hashlib
import heapq
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import PreTrainedModel

from trainers import corpus, model, segments, tokenizer, tokens
from trainers.config import POSITION_FIELDS, Objective
from trainers.engine import Ranks, device_of
from trainers.errors import DataError
from trainers.resampling import Sums
from trainers.segments import IGNORED_LABEL, Masking, hide_tokens
from trainers.task_inputs import TrialExecution
from trainers.task_types.base import Encoded, by_length

FILE = "losses.parquet"

_BITS, _NATS = "bits_per_byte", "nats_per_hidden_token"
_MEASURE = b"1"
"""Raise it with any change of what is lost: champions are asked again, then."""
_MASK_PROBABILITY = 0.15
_LOGITS_AT_ONCE = 1 << 27
_TEXTS_AT_ONCE = 256
_FACTS = b"pretune.losses"

Values = NDArray[np.float64]


@dataclass(frozen=True)
class LossWork:
    """A model to be asked about documents, in a form that travels to another process."""

    model: Path
    """A Hugging Face folder."""
    objective: Objective
    sequence_length: int
    """Tokens that the model was trained to read at once: longer documents are read piece by
    piece."""
    documents: tuple[str, ...]
    execution: TrialExecution


@dataclass(frozen=True)
class DocumentLosses:
    """What a model makes of each document; arrays of shape (documents,)."""

    nats: Values
    """Lost over all predicted tokens of a document."""
    constant_nats: Values
    """The same of what always predicts the tokens' frequencies in these very documents."""
    counts: Values
    """Bytes; with the masked objective hidden tokens."""
    unit: str
    """What the score is counted in: scores of two models compare where it is the same."""
    documents: str
    """Digest of the documents, and of how they are read."""

    @property
    def metric(self) -> str:
        """`bits_per_byte`, or with the masked objective `nats_per_hidden_token`."""
        return self.unit.partition(" ")[0]

    @property
    def score(self) -> float | None:
        """Of the model; None where there are no documents."""
        return self.mean(self.nats)

    def mean(self, nats: Values) -> float | None:
        """The metric of such losses over all documents; None where there are none."""
        return float(self.score_of(nats)(np.ones((1, len(nats))))[0]) if len(nats) else None

    def score_of(self, nats: Values) -> Sums:
        """The metric of such losses, as a function of how often documents count."""
        of_unit = nats / math.log(2) if self.metric == _BITS else nats
        of_rows = np.column_stack([of_unit, self.counts])
        return Sums(of_rows, lambda sums: sums[:, 0] / sums[:, 1])


def held_out(shards: Iterable[Path], *, documents: int, characters: int) -> list[str]:
    """The beginnings of some validation documents, the same however the corpus was cut.

    Of equal beginnings there is one: they would count as several documents that agree.

    Args:
        shards: of the validation part, each opened when it is its turn.
        documents: most that are taken: those whose beginnings' hashes are lowest.
        characters: most of each.
    """
    found: dict[int, str] = {}
    highest: list[int] = []  # a heap of negative numbers
    for text in (text[:characters] for shard in shards for text in corpus.read(shard)):
        number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        if number in found or not text.strip():
            continue
        found[number] = text
        heapq.heappush(highest, -number)
        if len(found) > documents:
            del found[-heapq.heappop(highest)]
    return [found[number] for number in sorted(found)]


def digest(documents: Sequence[str]) -> str:
    """SHA-256 of documents in their order; another for another way to read them."""
    found = hashlib.sha256(_MEASURE)
    for text in documents:
        content = text.encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


def measure(work: LossWork) -> DocumentLosses:
    """Ask a model about every token of the documents, or about hidden ones.

    Each piece of a document stands alone behind the end token. What the masked objective hides
    depends on a document's tokens and its place alone, so that models with one tokenizer are asked
    about the same tokens. Between tokenizers bits per byte compare if these lose the same of the
    texts, or nothing: that is found out by decoding.

    Raises:
        DataError: the folder's model cannot be asked so.
    """
    if not work.documents:
        nothing = np.zeros(0)
        return DocumentLosses(nothing, nothing, nothing, _BITS, digest(()))
    torch.set_num_threads(work.execution.threads)
    plain, end = tokenizer.plain(work.model)
    network = model.load(work.model, work.objective).eval()
    network.config.use_cache = False  # of no use here, and as large as the model
    network.to(device_of(Ranks(), use_gpu=work.execution.use_gpu))
    if work.objective == "causal":
        model.require_left_to_right(network.config)
    ids = list(_encoded(plain, end, work.documents))
    length = min(work.sequence_length, _positions(network))
    masking = _masking(work)
    pieces = [
        piece
        for number, of_document in enumerate(ids)
        for piece in _pieces(number, of_document, end, length, masking)
    ]
    nats, constant = np.zeros(len(ids)), np.zeros(len(ids))
    hidden = np.zeros(len(ids))
    rare = _surprise(pieces)
    for piece, lost in zip(pieces, _asked(network, pieces), strict=True):
        asked = piece.targets[piece.targets != IGNORED_LABEL]
        nats[piece.document] += lost
        constant[piece.document] += rare[asked].sum()
        hidden[piece.document] += len(asked)
    size = np.array([len(text.encode()) for text in work.documents], dtype=np.float64)
    return DocumentLosses(
        nats=nats,
        constant_nats=constant,
        counts=size if masking is None else hidden,
        unit=_unit(work, plain, ids),
        documents=digest(work.documents),
    )


def write(path: Path, losses: DocumentLosses) -> None:
    """Write losses, without the documents."""
    columns = {name: getattr(losses, name) for name in ("nats", "constant_nats", "counts")}
    facts = json.dumps({"unit": losses.unit, "documents": losses.documents})
    table = pa.table(columns).replace_schema_metadata({_FACTS: facts.encode()})
    pyarrow.parquet.write_table(table, path)


def read(content: bytes) -> DocumentLosses:
    """What `write` wrote."""
    table = pyarrow.parquet.read_table(BytesIO(content))
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return DocumentLosses(**columns, **json.loads(table.schema.metadata[_FACTS]))


@dataclass(frozen=True)
class _Piece:
    document: int
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    """Of each input the token that is to be predicted there, or `IGNORED_LABEL`."""


def _masking(work: LossWork) -> Masking | None:
    if work.objective == "causal":
        return None
    loaded = tokenizer.load(work.model)
    if loaded.mask_token_id is None:
        raise DataError(f"{work.model}: objective: masked needs a tokenizer with a mask token")
    return Masking(_MASK_PROBABILITY, loaded.mask_token_id, len(loaded))


def _encoded(plain: Tokenizer, end: int, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Of each text its ids, as in pretraining; some texts at a time, for encodings are large."""
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[first : first + _TEXTS_AT_ONCE])
        flat, sizes = tokens.encode(plain, end, some, np.uint32)
        yield from np.split(flat.astype(np.int64), np.cumsum(sizes)[:-1])


def _positions(network: PreTrainedModel) -> int:
    """Tokens that a network can tell apart; more than any document has where there is no limit."""
    stated = [getattr(network.config, name, None) for name in POSITION_FIELDS]
    most = next((number for number in stated if number is not None), sys.maxsize)
    return int(most) - segments.first_position(network)


def _pieces(
    number: int, ids: NDArray[np.int64], end: int, length: int, masking: Masking | None
) -> Iterator[_Piece]:
    """A document's tokens, each in one piece; none that asks for nothing."""
    if masking is None:
        for first in range(0, len(ids), length):
            targets = ids[first : first + length]
            yield _Piece(number, np.concatenate([[end], targets[:-1]]), targets)
        return
    if not len(ids):
        return
    row = torch.from_numpy(ids)[None]
    batch = hide_tokens(row, torch.ones_like(row, dtype=torch.bool), [number], masking, seed=0)
    shown, asked = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
    for first in range(0, len(ids), length - 1):
        place = slice(first, first + length - 1)
        targets = np.concatenate([[IGNORED_LABEL], asked[place]])
        if (targets != IGNORED_LABEL).any():
            yield _Piece(number, np.concatenate([[end], shown[place]]), targets)


def _asked(network: PreTrainedModel, pieces: Sequence[_Piece]) -> list[float]:
    """Nats that a model loses on each piece."""
    rows = Encoded([piece.inputs for piece in pieces], [])
    longest = max((len(piece.inputs) for piece in pieces), default=1)
    at_once = max(1, _LOGITS_AT_ONCE // (longest * network.config.get_text_config().vocab_size))

    @torch.no_grad()
    def lost(chosen: Sequence[int]) -> list[float]:
        inputs = _padded([pieces[row].inputs for row in chosen], 0).to(network.device)
        targets = _padded([pieces[row].targets for row in chosen], IGNORED_LABEL)
        mask = _padded([np.ones_like(pieces[row].inputs) for row in chosen], 0).to(network.device)
        logits = network(input_ids=inputs, attention_mask=mask).logits.float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1),
            targets.to(network.device).flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="none",
        )
        found: list[float] = losses.view(len(chosen), -1).double().sum(1).tolist()
        return found

    return by_length(rows, at_once, lost)


def _padded(rows: Sequence[NDArray[np.int64]], value: int) -> torch.Tensor:
    """Shape (rows, longest)."""
    tensors = [torch.from_numpy(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def _surprise(pieces: Sequence[_Piece]) -> Values:
    """Nats of each token, if its frequency is all that is known: the least any constant loses."""
    asked = np.concatenate([[0], *(piece.targets for piece in pieces)])[1:]
    counts = np.bincount(asked[asked != IGNORED_LABEL], minlength=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise: Values = -np.log(counts / counts.sum())
    return surprise


def _unit(work: LossWork, plain: Tokenizer, ids: Sequence[NDArray[np.int64]]) -> str:
    if work.objective == "masked":
        return f"{_NATS} of tokenizer {tokenizer.digest(work.model)[:16]}"
    decoded = plain.decode_batch([row.tolist() for row in ids], skip_special_tokens=False)
    told = [text.strip() for text in decoded]  # many put a space before the first word
    if told == [text.strip() for text in work.documents]:
        return _BITS
    return f"{_BITS} of texts as its tokens tell them, {digest(told)[:16]}"
