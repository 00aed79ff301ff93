"""A process killed with SIGKILL at every point of every commit path, each of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workflows import failpoints

HERE = Path(__file__).parent
NAMES = sorted(
    name
    for path in Path(failpoints.__file__).parent.glob("*.py")
    for name in re.findall(r'failpoints\.reach\("([^"]+)"\)', path.read_text(encoding="utf-8"))
)


def runs(*arguments: str) -> str:
    """What `failpoint_runs.py` prints."""
    answer = subprocess.run(
        [sys.executable, str(HERE / "failpoint_runs.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often an undisturbed run comes by each point."""
    found: dict[str, int] = json.loads(runs("count", str(tmp_path_factory.mktemp("count"))))
    return found


def test_undisturbed_run_comes_by_every_point(reached: dict[str, int]) -> None:
    assert sorted(reached) == NAMES
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_killed_anywhere_the_next_run_goes_on_and_gc_leaves_no_litter(
    tmp_path: Path, reached: dict[str, int], name: str
) -> None:
    assert runs(name, str(tmp_path)).split() == [str(n) for n in range(1, reached[name] + 1)]
