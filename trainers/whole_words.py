"""Which tokens begin and end words."""

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_METASPACE = "\u2581"
# What byte-level BPE writes for a space, and for tab, line feed, vertical tab, form feed, return.
_BYTE_LEVEL_SPACE = "\u0120"
_BYTE_LEVEL_BREAKS = "".join(chr(0x100 + byte) for byte in range(9, 14))


class WordBounds(NamedTuple):
    """Where words begin and end in a sequence of tokens; both over the vocabulary."""

    begins: NDArray[np.bool_]
    """Whether a token begins a word."""

    ends: NDArray[np.bool_]
    """Whether what follows a token begins a word, whatever it is."""


def word_bounds(loaded: "PreTrainedTokenizerFast") -> WordBounds:
    """Which tokens begin and end words, as their spelling shows it.

    WordPiece marks what continues a word, byte-level BPE and SentencePiece's kinds mark the space
    before one. Special tokens are words of their own, and white space other than spaces parts
    words.

    Raises:
        DataError: the tokens' spelling shows no words.
    """
    settings = json.loads(loaded.backend_tokenizer.to_str())
    network = settings["model"]
    described = json.dumps({**settings, "model": None, "added_tokens": None}, ensure_ascii=False)
    if network["type"] == "WordPiece":
        continued, spaces, breaks = network["continuing_subword_prefix"], "", ""
    elif '"ByteLevel"' in described:
        continued, spaces, breaks = None, _BYTE_LEVEL_SPACE, _BYTE_LEVEL_BREAKS
    elif _METASPACE in described:
        continued, spaces, breaks = None, _METASPACE, ""
    else:
        raise DataError(
            "pretrain.whole_words: this tokenizer's tokens do not show where words begin; set it "
            "to false, or tokenizer.train: wordpiece, bpe or unigram"
        )
    vocabulary = loaded.get_vocab()
    begins = np.zeros(1 + max(vocabulary.values()), dtype=np.bool_)
    ends = np.zeros_like(begins)
    for token, number in vocabulary.items():
        if continued is not None:
            begins[number] = not token.startswith(continued)
        else:
            begins[number] = token[:1] in spaces + breaks or token[:1].isspace()
            ends[number] = token[-1:] in breaks or token[-1:].isspace()
    special = list(loaded.all_special_ids)
    begins[special] = ends[special] = True
    return WordBounds(begins, ends)
