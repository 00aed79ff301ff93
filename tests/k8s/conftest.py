"""An API server for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ApiServer, serving
from rendering import known_kinds


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """With nothing in it; it checks custom resources where their schemas are at hand."""
    with serving(known_kinds(), tmp_path) as server:
        yield server
