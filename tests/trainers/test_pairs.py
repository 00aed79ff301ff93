"""Two texts as one sequence, whatever the tokenizer knows of pairs."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainers import tokenizer
from trainers.config import TokenizerConfig
from trainers.pairs import with_separator

WORDS = {word: number for number, word in enumerate(["<e>", "a", "b", "<s>", "<c>"])}


def plain(template: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    built = Tokenizer(models.WordLevel(WORDS, unk_token="<e>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        special = [(name, WORDS[name]) for name in ("<e>", "<s>", "<c>")]
        built.post_processor = processors.TemplateProcessing(**template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<e>", pad_token="<e>")


@pytest.mark.parametrize(
    ("template", "single", "pair"),
    [
        (None, "a a", "a a <e> b"),
        ({"single": "<s> $A <e>"}, "<s> a a <e>", "<s> a a <e> b <e>"),
        ({"single": "$A <e>"}, "a a <e>", "a a <e> b <e>"),
        # What has a separator of its own keeps it.
        (
            {"single": "<c> $A <s>", "pair": "<c> $A <s> $B:1 <s>:1"},
            "<c> a a <s>",
            "<c> a a <s> b <s>",
        ),
    ],
    ids=["decoder", "begin and end", "end", "encoder"],
)
def test_a_separator_stands_between_and_single_texts_stay_as_they_were(
    template: dict[str, str] | None, single: str, pair: str, tmp_path: Path
) -> None:
    found = with_separator(plain(template))
    found.save_pretrained(str(tmp_path))
    for loaded in (found, AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded("a a").tokens() == single.split()
        assert loaded("a a", "b").tokens() == pair.split()
        types = loaded(["a a"], ["b"])[0].type_ids
        assert types == sorted(types)
        assert types.count(1) == len(pair.split()) - pair.split().index("b")


def test_own_tokenizers_part_texts_as_documents_are_parted(tmp_path: Path) -> None:
    config = TokenizerConfig(train="bpe", vocab_size=260)
    own = with_separator(tokenizer.build(config, tmp_path, ["we met"], 64))
    end = own.eos_token
    tokens = own("we", "met").tokens()
    assert [place for place, token in enumerate(tokens) if token == end] == [
        0,
        own("we").tokens()[1:].index(end) + 1,
        len(tokens) - 1,
    ]
