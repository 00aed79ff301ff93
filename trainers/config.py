"""What the user may say about data, models and training. Pure schemas: no torch, fast to load."""

from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SourceFormat = Literal["lines", "paragraphs", "text", "jsonl", "csv", "parquet", "dataset"]
Objective = Literal["causal", "masked"]
Packing = Literal["concat", "best_fit"]

NUM_BYTE_TOKENS = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|mask|>")

_FORMAT_OF_SUFFIX: dict[str, SourceFormat] = {
    ".txt": "lines",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


WHERE = "where"
"""Marks a field that says where or how often, not what: no part of a step's identity."""


class Schema(BaseModel):
    """A frozen section of the pipeline file; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True
    )


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


def format_of(path: str) -> SourceFormat | None:
    """The format a path's suffix stands for, compression aside; None when it says nothing."""
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in {".gz", ".zst"}:
        suffixes.pop()
    return _FORMAT_OF_SUFFIX.get(suffixes[-1]) if suffixes else None


class SourceConfig(Schema):
    """One place documents come from."""

    path: Annotated[str, WHERE]
    """A file or a glob, relative to the pipeline file, or a URL of either (`s3://`, `gs://`,
    `abfs://`, `hf://`, `https://`); for `dataset` a folder written by `datasets` or a hub name."""

    step: Annotated[str | None, WHERE] = None
    """One of your own steps: then `path` is relative to its output folder."""

    format: SourceFormat
    """`lines` is a document a line, `paragraphs` parts them by empty lines, `text` is one a file.
    Derived from the suffix."""

    text: str = "text"
    """Column or key that holds the text (`jsonl`, `csv`, `parquet`, `dataset`)."""

    encoding: str = "utf-8"
    """Text encoding of `lines`, `paragraphs`, `text`, `jsonl` and `csv`."""

    subset: str | None = None
    """Configuration of a hub data set."""

    split: str | None = None
    """Split of a hub data set; `train` when absent."""

    revision: Annotated[str | None, WHERE] = None
    """Branch, tag or commit of a hub data set; its commit is part of what is computed."""

    weight: Annotated[PositiveFloat, WHERE] = 1.0
    """Times its sequences come in one pass over the corpus: 2 is twice, 0.5 every second one."""

    @model_validator(mode="after")
    def _names_of_the_hub(self) -> Self:
        given = {"revision": self.revision, "split": self.split, "subset": self.subset}
        useless = [name for name, value in given.items() if value is not None]
        if useless and self.format != "dataset":
            raise ValueError(
                f"{' and '.join(useless)} go with format: dataset; in an hf:// URL the "
                "revision stands behind the name: hf://datasets/org/name@revision/..."
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _derive_format(cls, data: Any) -> Any:
        if isinstance(data, dict) and "format" not in data and isinstance(data.get("path"), str):
            derived = format_of(data["path"])
            if derived is None:
                raise ValueError(
                    f"the suffix of {data['path']!r} says nothing of the format; "
                    "add format: lines, text, jsonl, csv, parquet or dataset"
                )
            return {**data, "format": derived}
        return data


class CleaningConfig(Schema):
    """What happens to documents before anything is learnt from them; each removal is counted."""

    normalize: Literal["NFC", "NFKC"] | None = None
    """Unicode normalisation form."""

    min_characters: Annotated[int, Field(ge=0)] = 0
    """Shorter documents are dropped."""

    deduplicate: bool = True
    """Keep documents once that are equal but for case and spacing, across all sources."""

    held_out_ngram: PositiveInt | None = 13
    """Drop documents that share so many words in a row with a text of `held_out`; null compares
    whole texts only. Source: Brown et al. 2020, arXiv:2005.14165, appendix C."""


class CorpusConfig(Schema):
    """The documents a model is pretrained on."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    """Read in this order; of exact duplicates the first is kept."""

    validation_fraction: Fraction = 0.01
    """Share of documents held out for the validation loss, chosen by a hash of the text."""

    held_out: list[str] = []
    """Tasks whose test texts are removed from the corpus before anything is learnt from it."""

    clean: CleaningConfig = CleaningConfig()
    """Normalisation and removals."""

    malformed: Literal["refuse", "skip"] = "refuse"
    """What to do with lines and files that cannot be read: end with an error that names the place,
    or leave them out, named in the log and counted."""

    shard_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Bytes of the sources in one shard: the unit of parallel work."""


class TokenizerConfig(Schema):
    """Where the tokenizer comes from: trained on the corpus, or loaded."""

    train: Literal["bpe", "wordpiece", "unigram"] | None = None
    """Train on the corpus: byte-level BPE (arXiv:1508.07909), WordPiece as BERT's or Unigram
    (arXiv:1804.10959)."""

    sample_bytes: PositiveInt = 256 * 1024 * 1024
    """Text to train on at most: documents chosen by a hash, whatever the number of shards."""

    vocab_size: Annotated[int, Field(gt=len(SPECIAL_TOKENS) + 1)] | None = None
    """Tokens to learn; the special tokens are included, and with `bpe` the 256 bytes, else every
    character of the text."""

    lowercase: bool = False
    """Fold case before tokenising (only when trained here)."""

    replace: dict[str, str] = {}
    """Regular expressions and what to put for their matches before tokenising, in this order."""

    from_: Annotated[str | None, Field(alias="from"), WHERE] = None
    """A folder with a Hugging Face tokenizer, used as it is."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.train is None) == (self.from_ is None):
            raise ValueError(
                "give either train: bpe, wordpiece or unigram, or from: FOLDER, and not both"
            )
        if self.train and self.vocab_size is None:
            raise ValueError(f"train: {self.train} needs vocab_size, such as vocab_size: 8192")
        least = NUM_BYTE_TOKENS + len(SPECIAL_TOKENS)
        if self.train == "bpe" and self.vocab_size is not None and self.vocab_size < least:
            raise ValueError(
                f"vocab_size ({self.vocab_size}) must hold the 256 bytes and the special tokens; "
                f"set at least {least}, or train: unigram or wordpiece"
            )
        if self.from_ and (self.vocab_size is not None or self.lowercase or self.replace):
            raise ValueError("vocab_size, lowercase and replace go with train, not with from")
        return self


class BaseConfig(Schema):
    """A model that is there already, for tasks without pretraining."""

    from_: Annotated[str | None, Field(alias="from"), WHERE] = None
    """A folder with a Hugging Face model and its tokenizer."""

    store: Annotated[str | None, WHERE] = None
    """A model of this pipeline's store: `name@version` or `name@champion`, which is looked up when
    the pipeline is planned."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.from_ is None) == (self.store is None):
            raise ValueError("give either from: FOLDER or store: NAME@VERSION, and not both")
        return self


POSITION_FIELDS = ("max_position_embeddings", "n_positions")
"""What families call the number of positions a network can tell apart."""


class ModelConfig(Schema):
    """The network: a `transformers` configuration, or an existing checkpoint."""

    objective: Objective = "causal"
    """`causal` predicts the next token, `masked` the hidden ones."""

    architecture: str | None = None
    """A `transformers` model type, for example llama, gpt2, qwen3, bert."""

    config: dict[str, Any] = {}
    """Fields of that type's configuration class; vocabulary and special tokens are derived."""

    from_: Annotated[str | None, Field(alias="from"), WHERE] = None
    """A folder with a Hugging Face model to go on from (continued pretraining)."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.architecture is None) == (self.from_ is None):
            raise ValueError("give either architecture (and config) or from: FOLDER, and not both")
        if self.from_ and self.config:
            raise ValueError("config goes with architecture; a model loaded by from keeps its own")
        derived = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"} & set(self.config)
        if derived:
            raise ValueError(f"{sorted(derived)} follow from the tokenizer; drop them from config")
        return self
