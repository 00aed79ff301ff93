"""A tokenizer trained on a sample of the corpus, or loaded from a folder."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from trainers.config import SPECIAL_TOKENS, TokenizerConfig
from trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD, MASK = SPECIAL_TOKENS
UNKNOWN = "<|unknown|>"
"""What WordPiece and Unigram make of characters that the sample did not have."""

FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"

_MOST_UNKNOWN = 0.05
_CONTINUED = "##"
_SENTENCE_BYTES = 4096
_SCORE_DIGITS = 6
_SCORE_STEP = 1e-4
_HASH_BYTES = 8


def sample(texts: Iterable[str], sample_bytes: int, total_bytes: int) -> Iterator[str]:
    """The texts whose hash falls below `sample_bytes` / `total_bytes`: about so many bytes.

    The choice depends on a text alone, not on the order of texts or how they are sharded.
    """
    for text in texts:
        position = hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()
        if int.from_bytes(position, "big") * total_bytes < sample_bytes << 8 * _HASH_BYTES:
            yield text


def build(
    config: TokenizerConfig, base: Path, texts: Iterable[str], max_length: int
) -> "PreTrainedTokenizerFast":
    """The tokenizer the pipeline file describes, with end, padding and mask tokens.

    Raises:
        DataError: it cannot be loaded or trained, or does not know the texts.
    """
    if config.from_:
        return _load(base / config.from_, texts)
    return _train(config, texts, max_length)


def load(directory: Path) -> "PreTrainedTokenizerFast":
    """A tokenizer that `build` or Hugging Face saved."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(str(directory))
    return tokenizer


def plain(directory: Path) -> tuple[Tokenizer, int]:
    """The tokenizer in `directory` without `transformers`, and its end token's id.

    It gives the ids of `load(directory)(text, add_special_tokens=False)`, but takes special tokens
    that are spelled out in a text for the ordinary text they are.

    Raises:
        DataError: there is none, or it has no end token.
    """
    try:
        tokenizer = Tokenizer.from_file(str(directory / FILE))
        settings = json.loads((directory / _CONFIG_FILE).read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{directory} holds no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    end = next((_content(settings[key]) for key in _END_KEYS if settings.get(key)), None)
    identifier = None if end is None else tokenizer.token_to_id(end)
    if identifier is None:
        raise DataError(f"{directory}: {_CONFIG_FILE} names no {' or '.join(_END_KEYS)}")
    return tokenizer, identifier


def digest(directory: Path) -> str:
    """SHA-256 of `tokenizer.json`, in hexadecimal: two tokenizers with it give the same ids.

    Raises:
        DataError: there is none.
    """
    try:
        return hashlib.sha256((directory / FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{directory} holds no tokenizer: {error}") from error


def parts(document: memoryview, limit: int) -> Iterator[str]:
    """UTF-8 text in parts of at most `limit` bytes that give the same tokens as the whole.

    So it is with the tokenizers that are trained here; one that puts a mark before every text, as
    those of SentencePiece do, marks each part. Parts end before a space behind a word: no
    pre-tokeniser here lets a token reach over that place, and a text that begins with a space is
    given no other. Where there is none, a part ends at any space, or between any two characters;
    then the tokens there may differ. So may they where a regular expression of `replace` would
    have matched over it.
    """
    start = 0
    while len(document) - start > limit:
        stop = start + _cut(bytes(document[start : start + limit + 1]))
        yield str(document[start:stop], "utf-8")
        start = stop
    yield str(document[start:], "utf-8")


_END_KEYS = ("eos_token", "sep_token")


def _content(token: str | dict[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def _cut(window: bytes) -> int:
    """Length of the part at the beginning of a window that has one byte more than it may have."""
    last = cut = window.rfind(b" ", 1)
    while cut > 0 and window[max(0, cut - 4) : cut].decode(errors="ignore")[-1:].isspace():
        cut = window.rfind(b" ", 1, cut)
    if max(cut, last) > 0:
        return cut if cut > 0 else last
    cut = len(window) - 1
    while window[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    return cut


def _train(
    config: TokenizerConfig, texts: Iterable[str], max_length: int
) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    assert config.train is not None  # the schema's validator saw to it
    assert config.vocab_size is not None
    with _told_as_data_error(config):
        tokenizer = _TRAINERS[config.train](config, texts, config.vocab_size)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise _too_small(config, f"{tokenizer.get_vocab_size()} tokens are the least")
    # A text begins and ends as documents do in pretraining: behind one end token, before another.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    settings = {"add_prefix_space": True} if config.train == "bpe" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END if config.train == "bpe" else UNKNOWN,
        pad_token=PAD,
        mask_token=MASK,
        padding_side="right",
        model_max_length=max_length,
        **settings,
    )


def _train_bpe(config: TokenizerConfig, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [*_replacements(config), *[normalizers.Lowercase()] * config.lowercase]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(config: TokenizerConfig, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """As BERT's. Trained twice: first only for the alphabet.

    The trainer numbers continued characters (`##a`) in the order of a hash table that is seeded
    anew in each process, and breaks ties between merges by these numbers. Given the alphabet, it
    has nothing to number.
    """
    texts = list(texts)
    special = [*SPECIAL_TOKENS, UNKNOWN]

    def train(known: list[str], size: int) -> dict[str, int]:
        tokenizer = _wordpiece(config, {})
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=known,
            continuing_subword_prefix=_CONTINUED,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        return vocabulary

    alphabet = sorted(set(train(special, 0)) - set(special))
    tokenizer = _wordpiece(config, train([*special, *alphabet], vocab_size))
    tokenizer.add_special_tokens(special)
    return tokenizer


def _wordpiece(config: TokenizerConfig, vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=_CONTINUED)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [*_replacements(config), normalizers.BertNormalizer(lowercase=config.lowercase)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUED)
    return tokenizer


def _train_unigram(config: TokenizerConfig, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Special tokens stand behind the model's own, which text can spell out."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            *_replacements(config),
            normalizers.NFKC(),
            *[normalizers.Lowercase()] * config.lowercase,
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), unk_token=UNKNOWN, show_progress=False
    )
    # Text without spaces is one sentence: its likelihood would vanish, and the memory with it.
    sentences = (
        part for text in texts for part in parts(memoryview(text.encode()), _SENTENCE_BYTES)
    )
    tokenizer.train_from_iterator(sentences, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    tokenizer.model = models.Unigram(_settled(learned), unk_id=0, byte_fallback=False)
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, UNKNOWN])
    return tokenizer


def _settled(learned: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """A Unigram vocabulary that is the same for the same texts.

    The trainer sums in the order of a hash table that is seeded anew in each process, so that the
    last digits of scores differ; and in such an order it gives characters that its model did not
    keep the model's lowest score, one step more each. Here these all get the lowest.
    """
    unknown, *pieces = learned
    lowest = min((score for _, score in pieces), default=0.0)
    characters = sorted((score, piece) for piece, score in pieces if len(piece) == 1)
    dropped: set[str] = set()
    for score, piece in characters:
        steps = (score - lowest) / _SCORE_STEP
        if round(steps) > len(dropped):
            break
        if abs(steps - round(steps)) < _SCORE_STEP:  # others come from the model, by chance near
            dropped.add(piece)
    rounded = [
        (piece, round(lowest if piece in dropped else score, _SCORE_DIGITS))
        for piece, score in pieces
    ]
    return [(unknown[0], unknown[1]), *sorted(rounded, key=lambda pair: (-pair[1], pair[0]))]


_TRAINERS = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}


def _replacements(config: TokenizerConfig) -> list[Any]:
    return [normalizers.Replace(Regex(pattern), text) for pattern, text in config.replace.items()]


def _too_small(config: TokenizerConfig, reason: str) -> DataError:
    return DataError(
        f"tokenizer.vocab_size: {config.vocab_size} is too small for the characters of the text "
        f"({reason}); raise it, take rare characters out with replace, or set train: bpe"
    )


@contextmanager
def _told_as_data_error(config: TokenizerConfig) -> Iterator[None]:
    """Failures of the `tokenizers` library, which have no class of their own, as `DataError`."""
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's; no `Exception`
        if not panicked and type(error) is not Exception:
            raise
        if "vocab" in str(error).lower():
            raise _too_small(config, str(error)) from error
        raise DataError(f"tokenizer.train: {config.train} failed: {error}") from error


def existing(directory: Path, key: str) -> "PreTrainedTokenizerFast":
    """A tokenizer of somebody else, with a token to pad with.

    Args:
        directory: holds it.
        key: where the pipeline file names it.

    Raises:
        DataError: there is none that can be used.
    """
    if not (directory / FILE).is_file():
        raise DataError(
            f"{key}: {directory} holds no {FILE}; save the tokenizer there with "
            "save_pretrained of its fast class, for example from AutoTokenizer"
        )
    try:
        tokenizer = load(directory)
    except (OSError, ValueError) as error:
        raise DataError(f"{key}: {directory} holds no tokenizer: {error}") from error
    end = tokenizer.eos_token or tokenizer.sep_token
    if end is None:
        raise DataError(f"{key}: {directory} names no eos_token or sep_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = end
    return tokenizer


def _load(directory: Path, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    tokenizer = existing(directory, "tokenizer.from")
    first = [text for text, _ in zip(texts, range(1000), strict=False)]
    encoded = tokenizer(first, add_special_tokens=False)["input_ids"]
    ids = [token for text in encoded for token in text]
    unknown = ids.count(tokenizer.unk_token_id) / max(1, len(ids))
    if unknown > _MOST_UNKNOWN:
        raise DataError(
            f"tokenizer.from: {directory}: its vocabulary is too small for the text: {unknown:.0%} "
            "of the tokens are unknown; use another, or train: bpe"
        )
    return tokenizer
