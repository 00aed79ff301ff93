"""What the corpus step reads is what was planned."""

import pytest

from trainers.errors import DataError
from workflows import corpora

PLANNED = {"/data/a.txt": "1", "s3://bucket/b@c.txt": "2", "org/name@main": "3"}
FOUND = {"/data/a.txt", "s3://bucket/b@c.txt", "org/name"}


def test_files_that_were_planned_are_read() -> None:
    corpora._require_planned(FOUND, PLANNED)


@pytest.mark.parametrize(
    ("found", "file"),
    [
        (FOUND | {"/data/new.txt"}, "/data/new.txt"),
        (FOUND - {"/data/a.txt"}, "/data/a.txt"),
        (FOUND - {"org/name"}, "org/name"),
    ],
)
def test_file_that_came_or_went_since_is_named(found: set[str], file: str) -> None:
    with pytest.raises(DataError, match=rf"^{file}: this file came or went .* run the same"):
        corpora._require_planned(found, PLANNED)
