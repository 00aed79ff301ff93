"""A byte-level BPE trained on the corpus, or a tokenizer loaded from a folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

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

_MOST_UNKNOWN = 0.05


def build(
    config: TokenizerConfig, base: Path, texts: Iterable[str], max_length: int
) -> "PreTrainedTokenizerFast":
    """The tokenizer the pipeline file describes, with end, padding and mask tokens."""
    if config.from_:
        return _load(base / config.from_, texts)
    return _train(config, texts, max_length)


def load(directory: Path) -> "PreTrainedTokenizerFast":
    """A tokenizer that `build` or Hugging Face saved."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(str(directory))
    return tokenizer


def _train(
    config: TokenizerConfig, texts: Iterable[str], max_length: int
) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    assert config.vocab_size is not None  # the schema's validator saw to it
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(pattern), text) for pattern, text in config.replace.items()]
        + [normalizers.Lowercase()] * config.lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # A text begins and ends as documents do in pretraining: behind one end token, before another.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=PAD,
        mask_token=MASK,
        add_prefix_space=True,
        padding_side="right",
        model_max_length=max_length,
    )


def _load(directory: Path, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    try:
        tokenizer = load(directory)
    except (OSError, ValueError) as error:
        raise DataError(f"tokenizer.from: {directory} holds no tokenizer: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    sample = [text for text, _ in zip(texts, range(1000), strict=False)]
    encoded = tokenizer(sample, add_special_tokens=False)["input_ids"]
    ids = [token for text in encoded for token in text]
    unknown = ids.count(tokenizer.unk_token_id) / max(1, len(ids))
    if unknown > _MOST_UNKNOWN:
        raise DataError(
            f"tokenizer.from: {directory}: its vocabulary is too small for the text: {unknown:.0%} "
            "of the tokens are unknown; use another, or train: bpe"
        )
    return tokenizer
