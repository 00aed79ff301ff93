"""Looks at a base while it is pretrained, with the real Ray: a task takes the best one."""

import json
from pathlib import Path

import pytest
from conftest import tiny_pipeline, write_pipeline
from processes import pretune

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SUFFIXES = ("-5", "-10", "-15", "")


def test_each_branch_is_looked_at_and_the_best_one_is_tuned(tmp_path: Path) -> None:
    data = tiny_pipeline(tmp_path)
    data["pretrain"]["schedule"] = {"name": "wsd", "branches": [0.25, 0.5, 0.75]}
    data["pretrain"]["promote"] = None
    data["probe"] = {"tasks": ["tone"], "rows": 40}
    tone = data["tasks"]["tone"]
    del data["tasks"]["places"], tone["promote"]
    tone |= {"base": "best_probe", "final": {"seeds": 1}, "controls": {"scratch": False}}
    tone["search"]["trials"] = 1
    pipeline = write_pipeline(tmp_path, data)
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    summary = json.loads(answer.stdout)
    assert set(summary["states"].values()) == {"done"}
    facts = json.loads(
        pretune(
            *("status", Path(summary["report"]).parent.name, "--json"),
            *("--storage", tmp_path / "storage"),
            folder=tmp_path,
        ).stdout
    )["steps"]
    bases = {"pretrain" + (suffix and f".branch{suffix}"): suffix for suffix in SUFFIXES}
    looks = {base: facts[f"tone.probe{at}"]["head"]["accuracy"] for base, at in bases.items()}
    assert looks[facts["tone.base"]["chosen"]] == max(looks.values())
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "While the base was pretrained" in page
    assert f"This task was tuned from {facts['tone.base']['chosen']}" in page
    again = pretune("run", pipeline, "--json", folder=tmp_path)
    assert set(json.loads(again.stdout)["states"].values()) == {"reused"}
    told = pretune("plan", pipeline, "--probe", "--json", folder=tmp_path)
    assert {row["step"]: row["head"] for row in json.loads(told.stdout)} == {
        f"tone.probe{at}": round(looks[base], 4) for base, at in bases.items()
    }
