"""An API server for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ApiServer, serving
from rendering import crd_kinds


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """With the schemas of the CRDs, and nothing in it."""
    with serving(crd_kinds(), tmp_path) as server:
        yield server
