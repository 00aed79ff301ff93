"""A first pipeline for the user's own data: what to try, from what was seen. Pure.

Nothing here is the best; all of it is a beginning that runs, with the reason beside each choice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from workflows.looking import CorpusLook, TaskLook, quantile

_TOKENS_PER_PARAMETER = 20
"""Compute-optimal. Source: Hoffmann et al. 2022, arXiv:2203.15556."""
_MOST_PASSES = 4
"""Over the corpus; more teach little. Source: Muennighoff et al. 2023, arXiv:2305.16264."""
_TOKENS_PER_WORD = 1.5
_VOCABULARIES = ((1024, 3e5), (4096, 5e6), (8192, 5e7), (16384, 1e9))
"""Sizes, each for corpora of fewer tokens."""
_FEW_ROWS = 500
_IMBALANCED = 0.6


class Network(NamedTuple):
    """A decoder of the family llama."""

    width: int
    layers: int
    heads: int

    def parameters(self, vocab_size: int) -> int:
        """With the table of tokens, which is the head, too."""
        return 12 * self.width**2 * self.layers + vocab_size * self.width


_RATES = (
    (1, (2e-5, 3e-4)),  # of a base whose size nobody knows
    (5e6, (5e-4, 2e-3)),
    (5e7, (5e-5, 5e-4)),
    (float("inf"), (1e-5, 1e-4)),
)
"""Learning rates of full fine-tuning, for networks of fewer parameters."""

NETWORKS = (
    Network(64, 2, 2),
    Network(128, 3, 4),
    Network(256, 4, 4),
    Network(384, 6, 6),
    Network(512, 8, 8),
    Network(768, 12, 12),
    Network(1024, 24, 16),
    Network(2048, 24, 16),
)


@dataclass(frozen=True)
class Machine:
    """What the pipeline will run on."""

    flops: float
    """Operations a second that training gets of all devices together."""
    workers: int
    gpus: int


@dataclass(frozen=True)
class Training:
    """How a model of a corpus is pretrained."""

    network: Network
    vocab_size: int
    sequence_length: int
    tokens: int
    batch_tokens: int

    @property
    def learning_rate(self) -> float:
        """Of AdamW; wider networks want less."""
        return float(f"{3e-3 * (128 / max(128, self.network.width)) ** 0.75:.1e}")


def training(corpus: CorpusLook, machine: Machine, minutes: float) -> Training:
    """The largest network that can be trained well on this corpus in this time."""
    there = tokens_of(corpus)
    vocab_size = next((size for size, most in _VOCABULARIES if there < most), 32768)
    most = machine.flops * minutes * 60

    def tokens(network: Network) -> int:
        wanted = _TOKENS_PER_PARAMETER * network.parameters(vocab_size)
        return min(wanted, _MOST_PASSES * there)

    def fits(network: Network) -> bool:
        parameters = network.parameters(vocab_size)
        is_fed = tokens(network) == _TOKENS_PER_PARAMETER * parameters
        return is_fed and 6 * parameters * tokens(network) <= most

    network = max(filter(fits, NETWORKS), default=NETWORKS[0])
    affordable = int(most / (6 * network.parameters(vocab_size)))
    length = _length(quantile(corpus.words, 0.9), 64, 1024)
    total = max(1, min(tokens(network), affordable))
    batch = _batch(total, length, machine.workers)
    return Training(network, vocab_size, length, max(total // batch, 20) * batch, batch)


def tokens_of(corpus: CorpusLook) -> int:
    """About so many has the corpus."""
    return max(1, int(corpus.size_bytes / corpus.characters_per_word * _TOKENS_PER_WORD))


def _batch(total: int, length: int, workers: int) -> int:
    """Tokens of an optimizer step: some hundred steps at least, and all workers have a part."""
    wanted = min(max(2048, total // 500), 1 << 19)
    unit = length * workers
    return max(1, wanted // unit) * unit


def _length(words: int, least: int, most: int) -> int:
    """A power of two that so many words fit in."""
    length = least
    while length < words * _TOKENS_PER_WORD and length < most:
        length *= 2
    return length


def text(
    name: str,
    tasks: Mapping[str, TaskLook],
    machine: Machine,
    *,
    corpus: CorpusLook | None = None,
    base: str | None = None,
    minutes: float = 30.0,
) -> str:
    """The pipeline file.

    Args:
        name: of the pipeline.
        tasks: by name.
        machine: what it will run on.
        corpus: to pretrain on; else `base` is there already.
        base: a Hugging Face folder.
        minutes: that pretraining may take.
    """
    made = training(corpus, machine, minutes) if corpus is not None else None
    lines = [
        f"name: {name}",
        "storage: ./pretune-data",
        "",
    ]
    if corpus is not None and made is not None:
        lines += _pretraining(corpus, made, list(tasks), minutes)
        parameters = made.network.parameters(made.vocab_size)
    else:
        lines += ["base:", f"  from: {_quoted(str(base))}", ""]
        parameters = 0
    lines.append("tasks:")
    for task, look in tasks.items():
        lines += [f"  {line}" for line in _task(task, look, parameters)]
    lines += ["", "cluster:", *_cluster(machine, has_pretraining=made is not None)]
    return "\n".join(lines) + "\n"


def _pretraining(
    corpus: CorpusLook, made: Training, tasks: Sequence[str], minutes: float
) -> list[str]:
    network = made.network
    column = (
        f", text: {_quoted(corpus.text)}" if corpus.format in {"jsonl", "csv", "parquet"} else ""
    )
    parameters = network.parameters(made.vocab_size)
    halves = f"half of the documents have {quantile(corpus.words, 0.5)} words or fewer"
    why = f"what this corpus and {minutes:g} minutes here can feed"
    passes = f"{made.tokens / tokens_of(corpus):.1f} times the corpus"
    return [
        "corpus:",
        f"  # {_counted(corpus.files, 'file')}, {corpus.size_bytes / 1e6:,.1f} MB; {halves}",
        f"  sources: [{{path: {_quoted(corpus.path)}{column}}}]",
        "  validation_fraction: 0.01",
        f"  held_out: [{', '.join(tasks)}]     # their test texts are never learnt from",
        "",
        "tokenizer:",
        "  train: bpe",
        f"  vocab_size: {made.vocab_size}",
        "",
        "model:",
        f"  # {parameters / 1e6:,.1f} million parameters: {why}",
        "  objective: causal",
        "  architecture: llama",
        "  config:",
        f"    hidden_size: {network.width}",
        f"    intermediate_size: {network.width * 8 // 3 // 32 * 32 or 64}",
        f"    num_hidden_layers: {network.layers}",
        f"    num_attention_heads: {network.heads}",
        "    tie_word_embeddings: true",
        "",
        "pretrain:",
        f"  sequence_length: {made.sequence_length}     # nine of ten documents fit",
        f"  tokens: {made.tokens:_}     # {made.tokens / parameters:.2g} a parameter, {passes}",
        f"  global_batch_tokens: {made.batch_tokens}",
        f"  learning_rate: {made.learning_rate:.1e}",
        "  schedule: {name: linear, warmup: 0.05}",
        "  zero: {stage: 1}",
        f"  checkpoint: {{every_steps: {max(10, made.tokens // made.batch_tokens // 20)}}}",
        "",
    ]


def _task(name: str, look: TaskLook, parameters: int) -> list[str]:
    data = [f"path: {_quoted(look.path)}"]
    if look.format == "conll":
        data.append("format: conll")
    for key, column, usual in (
        ("text", look.columns.text, "text"),
        ("text_pair", look.columns.text_pair, None),
        ("label", look.columns.label, "label"),
    ):
        if column is not None and column != usual:
            data.append(f"{key}: {_quoted(column)}")
    stratify = ""
    if look.type == "classification" and not look.multi_label and look.of_rows < _FEW_ROWS:
        stratify = ", stratify: true"
    length, answers = _lengths(look)
    return [
        f"{name}:",
        f"  # {_seen(look)}",
        f"  type: {look.type}",
        *(["  multi_label: true"] if look.multi_label else []),
        "  data:",
        *(f"    {line}" for line in data),
        f"    split: {{test: 0.2, validation: 0.1{stratify}}}",
        f"  metric: {metric(look)}",
        f"  max_length: {length}     # tokens; most texts fit",
        *([f"  answer_length: {answers}"] if answers else []),
        "  search:",
        "    trials: 8",
        "    searcher: random",
        "    scheduler: asha",
        "    space:",
        *(f"      {line}" for line in _space(look, parameters)),
        "  final: {top: 1, seeds: 3}",
        *(["  controls: {scratch: true}     # what is the base worth?"] if parameters else []),
    ]


def metric(look: TaskLook) -> str:
    """What trials are ranked by."""
    match look.type:
        case "classification" if look.multi_label:
            return "micro_f1"
        case "classification":
            largest = max(look.labels.values(), default=0) / max(1, sum(look.labels.values()))
            return "macro_f1     # one label is frequent" if largest > _IMBALANCED else "accuracy"
        case "token_classification":
            has_entities = any(label.startswith("B-") for label in look.labels)
            return "entity_f1" if has_entities else "accuracy"
    return {"regression": "pearson", "question_answering": "f1", "generation": "rouge_l"}[look.type]


def _lengths(look: TaskLook) -> tuple[int, int]:
    """Tokens of a text, and of an answer where there is one to write or find."""
    length = _length(quantile(look.words, 0.95), 32, 512)
    if look.type not in {"question_answering", "generation"}:
        return length, 0
    answers = _length(quantile(look.answer_words, 0.95), 8, 128)
    return max(length, 2 * answers, 64), answers


def _space(look: TaskLook, parameters: int) -> list[str]:
    low, high = next(rates for most, rates in _RATES if parameters < most)
    methods = {"full": (low, high), "lora": (5 * low, 5 * high), "head": (1e-3, 1e-2)}
    if look.type == "generation":
        del methods["head"]  # its head is the base's own
    lines = ["method:"]
    lines += [
        f"  {method}: {{learning_rate: {{loguniform: [{least:.1e}, {most:.1e}]}}}}"
        for method, (least, most) in methods.items()
    ]
    return [*lines, f"epochs: {4 if look.of_rows < 20_000 else 2}"]


def _seen(look: TaskLook) -> str:
    is_whole = look.rows == look.of_rows
    rows = (
        f"{look.rows:,} rows" if is_whole else f"looked at {look.rows:,} of {look.of_rows:,} rows"
    )
    words = f"half have {quantile(look.words, 0.5)} words or fewer"
    names = sorted(look.labels, key=look.labels.__getitem__, reverse=True)
    labels = ", ".join(f"{one} {look.labels[one]:,}" for one in names[:6])
    more = ", ..." if len(names) > 6 else ""
    return f"{rows}, {words}" + (f"; labels: {labels}{more}" if names else "")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _cluster(machine: Machine, *, has_pretraining: bool) -> list[str]:
    gpus = ", gpus: 1" if machine.gpus else ""
    lines = []
    if has_pretraining:
        lines.append(f"  pretrain: {{workers: {machine.workers}{gpus}}}")
    if machine.gpus:
        lines.append("  trials: {gpus: 1}")
    return [*lines, "  retry: {max_attempts: 3}"]


def _quoted(value: str) -> str:
    """A scalar of YAML that means this text."""
    is_plain = value and all(one.isalnum() or one in "._/-" for one in value)
    return value if is_plain and not value[0].isdigit() and value[0] != "-" else json.dumps(value)


def task_name(path: str) -> str:
    """Of a task that nobody named: its file's."""
    stem = PurePath(path).name.partition(".")[0].lower()
    return "".join(one if one.isalnum() else "_" for one in stem).strip("_") or "task"
