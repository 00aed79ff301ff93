"""Two texts as one sequence."""

from tokenizers import processors
from transformers import PreTrainedTokenizerFast


def with_separator(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer, with a separator between two texts where it would put none.

    Tokenizers of encoders have a form for pairs. Those of decoders often join the texts as if they
    were one: then the token that ends a text stands between them. Single texts stay as they were.
    The form is saved with the tokenizer, so that whoever loads it gives the model what it knows.
    """
    single, pair = (tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True))
    if pair > single:
        return tokenizer
    before, after = _around(tokenizer)
    separator = tokenizer.sep_token or tokenizer.eos_token
    tokens = {*before, separator, *after}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", f"{separator}:0", "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens],
    )
    return tokenizer


def around_answer(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int, int]:
    """Tokens before a text, between it and the answer written to it, and behind that."""
    before, _ = _around(tokenizer)
    separator = tokenizer.sep_token_id if tokenizer.sep_token else tokenizer.eos_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token else tokenizer.sep_token_id
    return tokenizer.convert_tokens_to_ids(before), separator, end


def _around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """The special tokens before and behind a single text."""
    encoding = tokenizer("a")
    tokens, inside = encoding.tokens(), encoding.word_ids()
    of_text = [place for place, word in enumerate(inside) if word is not None]
    return tokens[: of_text[0]], tokens[of_text[-1] + 1 :]
