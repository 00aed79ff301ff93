"""The example of docs/own-steps.md, as it stands there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_pipeline, write_pipeline
from processes import pretune

pytestmark = pytest.mark.ray

DOCUMENT = Path(__file__).parents[2] / "docs" / "own-steps.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    return str(found)


def pipeline(folder: Path) -> dict[str, Any]:
    data = tiny_pipeline(folder)
    example = yaml.safe_load(block("yaml"))
    data["corpus"] |= {"held_out": []} | example["corpus"]
    (folder / "cleaning.py").write_text(block("python"), encoding="utf-8")
    return data | {"steps": example["steps"]}


def plans(folder: Path, *arguments: str) -> dict[str, tuple[str, str]]:
    answer = pretune("plan", "pipeline.yaml", "--json", *arguments, folder=folder)
    assert answer.returncode == 0, answer.stderr
    return {row["step"]: (row["plan"], row["why"]) for row in json.loads(answer.stdout)}


def test_corpus_is_filtered_by_a_function_beside_the_pipeline_file(tmp_path: Path) -> None:
    write_pipeline(tmp_path, pipeline(tmp_path))
    only = ("--only", "clean", "--only", "corpus")
    answer = pretune("run", "pipeline.yaml", *only, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    states = json.loads(answer.stdout)["states"]
    assert (states["clean"], states["corpus"]) == ("done", "done")
    assert states["pretrain"] == "not needed"

    lines = (tmp_path / "corpus.txt").read_text(encoding="utf-8").splitlines()
    long = {line for line in lines if len(line.split()) >= 8}
    status = json.loads(pretune("status", "--json", "--storage", "storage", folder=tmp_path).stdout)
    clean, corpus = status["steps"]["clean"], status["steps"]["corpus"]
    assert clean["kept"] + clean["dropped"] == len(lines)
    assert 0 < clean["dropped"] < len(lines)
    assert corpus["train"] + corpus["validation"] == len(long)

    assert plans(tmp_path)["clean"] == ("REUSE", "")
    changed = plans(tmp_path, "--set", "steps.clean.spec.min_words=9")
    assert changed["clean"] == ("RUN", "spec.min_words 8 -> 9")
    assert changed["corpus"] == ("RUN", "input clean changed")

    code = (tmp_path / "cleaning.py").read_text(encoding="utf-8")
    (tmp_path / "cleaning.py").write_text(code.replace("dropped", "left_out"), encoding="utf-8")
    plan, why = plans(tmp_path)["clean"]
    assert plan == "REUSE"
    assert why.startswith("DRIFT")
