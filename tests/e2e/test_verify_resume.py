"""`pretune verify-resume` on a real local Ray: workers are killed and their number changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline
from processes import pretune, traces_of_ray, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak]


def test_pipeline_is_certified_to_resume_exactly(pipeline: dict[str, Any], tmp_path: Path) -> None:
    before = traces_of_ray()
    pipeline["pretrain"]["zero"] = {"stage": 2}
    file = write_pipeline(tmp_path, pipeline)
    options = ("--steps", 9, "--kills", 1, "--certificate", "proof.json")
    ended = pretune("verify-resume", file, *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found = json.loads((tmp_path / "proof.json").read_text())
    assert found["verdict"] == "passed"
    assert len(found["killed"]["kills_after_steps"]) == 1
    assert found["killed"]["weights_sha256"] == found["straight"]["weights_sha256"]
    assert found["resized"]["workers"] == [2, 1, 2]
    assert found["resized"]["samples_digest"] == found["straight"]["samples_digest"]
    (killed,) = (tmp_path / "storage" / "verifications").glob("*/killed/kill-*")
    assert killed.name == f"kill-{found['killed']['kills_after_steps'][0]}"
    # What was trained for the proof stands for nothing else.
    assert not list((tmp_path / "storage" / "artifacts").glob("pretrain/*/*/output"))
    wait_for(lambda: traces_of_ray() <= before, timeout_s=30)
