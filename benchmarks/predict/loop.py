"""The peer: a batched loop as somebody writes it who knows transformers.

Rows are read one by one and labelled in batches of 64, padded to the longest of the batch, under
`torch.inference_mode`; with `sorted`, 2,048 rows at a time are sorted by length before.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 64
SORTED_TOGETHER = 2048
MAX_LENGTH = 64


def label(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """Add label and score to rows."""
    texts = [row["text"] for row in rows]
    inputs = tokenizer(
        texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    shares = model(**inputs).logits.softmax(-1)
    scores, labels = shares.max(-1)
    for row, score, number in zip(rows, scores.tolist(), labels.tolist(), strict=True):
        row["prediction"], row["score"] = model.config.id2label[number], score


def rows_of(source: Path) -> Iterator[dict[str, Any]]:
    """One by one."""
    with source.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def main() -> None:
    """Label a file and print seconds, rows and memory as JSON."""
    folder, source, output = (Path(argument) for argument in sys.argv[1:4])
    is_sorted = sys.argv[4] == "sorted"
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    number, started = 0, time.monotonic()
    with output.open("w", encoding="utf-8") as file, torch.inference_mode():
        rows = rows_of(source)
        while chunk := list(islice(rows, SORTED_TOGETHER)):
            order = sorted(chunk, key=lambda row: len(row["text"])) if is_sorted else chunk
            for start in range(0, len(order), BATCH):
                label(model, tokenizer, order[start : start + BATCH])
            for row in chunk:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += len(chunk)
    seconds = time.monotonic() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "rows": number, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
