"""What makes a document fit to learn from: its form, its length, and what it must not give away."""

import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from trainers.config import CleaningConfig
from trainers.documents import parts

Verdict = Literal["kept", "short", "held_out", "contaminated"]

KEY_BYTES = 16

_WORD = re.compile(r"\w+")
_TEXTS, _WORDS, _NGRAMS = "texts.parquet", "words.parquet", "ngrams.npy"


def text_key(text: str) -> str:
    """What makes two texts duplicates: their words, case and spacing aside."""
    return " ".join(text.lower().split())


def normalized(text: str, config: CleaningConfig) -> str:
    """The text in the Unicode form that is asked for."""
    return unicodedata.normalize(config.normalize, text).strip() if config.normalize else text


def key_of(text: str) -> bytes:
    """A digest that duplicates share; a long text is never copied as a whole."""
    digest, between = hashlib.sha256(), ""
    for part in parts(text):
        words = text_key(part)
        if words:
            digest.update(f"{between}{words}".encode())
            between = " "
    return digest.digest()[:KEY_BYTES]


def write_held_out(texts: Iterable[str], config: CleaningConfig, directory: Path) -> None:
    """Keep what tasks are tested on where the cleaners of all shards find it.

    Texts are normalised as documents are: else the same text would not be known again.
    """
    ngram = config.held_out_ngram
    keys: set[bytes] = set()
    hashes: set[int] = set()
    vocabulary: set[str] = set()
    for text in (normalized(text, config) for text in texts):
        keys.add(key_of(text))
        words = [word.lower() for word in _WORD.findall(text)]
        if ngram is not None and len(words) >= ngram:
            vocabulary.update(words)
            hashes.update(_hash(words[at : at + ngram]) for at in range(len(words) - ngram + 1))
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / _NGRAMS, np.array(sorted(hashes), dtype=np.uint64))
    for name, values in ((_TEXTS, sorted(keys)), (_WORDS, sorted(vocabulary))):
        pyarrow.parquet.write_table(pa.table({"value": values}), directory / name)


@dataclass(frozen=True)
class HeldOut:
    """What no document may contain."""

    keys: frozenset[bytes]
    ngrams: NDArray[np.uint64]
    """Hashes, sorted: test splits may have millions."""
    words: frozenset[str]
    """All words of the n-grams: a cheap first look."""

    @classmethod
    def load(cls, directory: Path) -> "HeldOut":
        """What `write_held_out` wrote."""
        keys, words = (
            frozenset(pyarrow.parquet.read_table(directory / name).column("value").to_pylist())
            for name in (_TEXTS, _WORDS)
        )
        return cls(keys, np.load(directory / _NGRAMS, mmap_mode="r"), words)

    def shares_ngram(self, text: str, length: int) -> bool:
        """Whether `length` words in a row are in a held-out text in this order, case aside."""
        if not self.words:
            return False
        run: deque[str] = deque(maxlen=length)
        for match in _WORD.finditer(text):
            word = match[0].lower()
            if word not in self.words:
                run.clear()
                continue
            run.append(word)
            if len(run) == length and self._has(_hash(run)):
                return True
        return False

    def _has(self, ngram: int) -> bool:
        place = int(np.searchsorted(self.ngrams, np.uint64(ngram)))
        return place < len(self.ngrams) and int(self.ngrams[place]) == ngram


def _hash(words: Iterable[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest())


class Cleaner:
    """Normalises documents and says what becomes of them."""

    def __init__(self, config: CleaningConfig, held_out: HeldOut) -> None:
        self._config, self._held_out = config, held_out

    def clean(self, text: str) -> tuple[str, bytes, Verdict]:
        """The document as it is learnt from, its key, and whether it is kept."""
        text = normalized(text, self._config)
        key = key_of(text)
        if len(text) < max(1, self._config.min_characters):
            return text, key, "short"
        if key in self._held_out.keys:
            return text, key, "held_out"
        length = self._config.held_out_ngram
        if length is not None and self._held_out.shares_ngram(text, length):
            return text, key, "contaminated"
        return text, key, "kept"
