import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workflows import execution, sources
from workflows.drafts import STAGE_VERSIONS
from workflows.sources import STAGE_SOURCES, source_digest, stage_digest

ROOT = Path(__file__).parents[2]

PLUMBING = {
    "cluster.capacity": "how many trials run at once, which no result depends on",
    "cluster.config": "counted by its values, in the step's spec",
    "cluster.folders": "how files reach every node",
    "cluster.interface": "types",
    "cluster.standing_gang": "how calls reach the ranks of a trial",
    "cluster.logs": "where prints go",
    "cluster.schema": "what schemas share",
    "workflows.artifacts": "where outputs are kept",
    "workflows.openings": "how often somebody looked, which changes nothing",
    "workflows.storage": "where everything is kept",
    "workflows.config": "counted by its values, in the step's spec",
    "workflows.execution": "what every stage is given",
    "workflows.history": "what the run was about",
    "workflows.ledger": "who did what",
    "workflows.steps": "what a step is",
    "workflows.models": "where models are kept",
    "workflows.promote_config": "counted by its values, in the step's spec",
    "workflows.task_section": "counted by its values, in the step's spec",
    "workflows.outside": "counted by what it found, the step's outside data",
    "workflows.pipeline": "counted by its values, in the step's spec",
    "workflows.probing": "what steps know, counted by its values, and what their inputs are called",
    "workflows.shares": "how many trials run at once, which no result depends on",
    "workflows.shards": "where shards are computed and kept",
}
"""Glue that stages import and that STAGE_SOURCES leaves out, and why."""


def forget() -> None:
    """What a process read once."""
    importlib.invalidate_caches()
    for cached in vars(sources).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's package `mine`: `step` imports `near`, that `middle`, that `far`, one way each."""
    folder = tmp_path / "mine"
    modules = {
        "__init__.py": "",
        "step.py": '"""Doc."""\nfrom mine import near\n\n\ndef run():\n    return near.value()\n',
        "near.py": "def value():\n    import mine.deep.middle\n\n    return 1\n",
        "deep/__init__.py": "",
        "deep/middle.py": "from ..far import FAR\n",
        "far.py": "FAR = 1\n",
        "other.py": "OTHER = 1\n",
    }
    for name, code in modules.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def changes(entry: str, path: Path, edit: Callable[[str], str]) -> bool:
    """Whether an edit of a file changes the digest of an entry."""
    forget()
    before = source_digest(entry)
    path.write_text(edit(path.read_text()))
    forget()
    return source_digest(entry) != before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("step.py", '"""Doc."""', '"""Other."""'),
        ("step.py", '"""Doc."""\n', ""),
        ("step.py", "def run():", "def run():  # runs"),
        ("step.py", "def run():\n", 'def run():\n    """Docs."""\n'),
        ("step.py", "return near.value()", "return (\n        near.value( )\n    )"),
        ("far.py", "FAR = 1\n", 'FAR = 0x1\n"""Of an attribute."""\n'),
        ("other.py", "1", "2"),
    ],
)
def test_what_does_not_run_is_not_counted(package: Path, module: str, old: str, new: str) -> None:
    def edit(code: str) -> str:
        assert old in code
        return code.replace(old, new, 1)

    assert not changes("mine.step:run", package / module, edit)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("step.py", "return near.value()", "return near.value() + 1"),
        ("near.py", "return 1", "return 1.0"),
        ("deep/__init__.py", "", "import random\n"),
        ("__init__.py", "", "import random\n"),
        ("deep/middle.py", "from ..far import FAR", "from mine import far"),
        ("far.py", "1", "2"),
        ("far.py", "FAR = 1", "FAR = 'text'"),
    ],
)
def test_what_runs_is_counted_however_far_it_is(
    package: Path, module: str, old: str, new: str
) -> None:
    assert changes("mine.step:run", package / module, lambda code: code.replace(old, new, 1))


@pytest.mark.parametrize(
    ("statement", "is_counted"),
    [
        ("import mine.other", True),
        ("import mine.other as renamed", True),
        ("import mine.far, mine.other", True),
        ("from mine import other", True),
        ("from mine.other import OTHER", True),
        ("from mine.other import *", True),
        ("from . import other", True),
        ("from .other import OTHER", True),
        ("from .deep import other", False),
        ("import other", False),
        ("text = 'import mine.other'", False),
    ],
)
def test_every_way_to_import_is_followed(package: Path, statement: str, is_counted: bool) -> None:
    (package / "step.py").write_text(f"def run():\n    {statement}\n")
    changed = changes("mine.step", package / "other.py", lambda code: code.replace("1", "2"))
    assert changed is is_counted


def test_trainers_that_a_user_s_step_imports_are_counted(package: Path) -> None:
    plain = source_digest("mine.step")
    path = package / "near.py"
    assert changes("mine.step", path, lambda code: f"from trainers import order\n{code}")
    code = sources._code("mine.near")
    assert "trainers.order" in code.imports
    assert plain != source_digest("mine.step") != source_digest("trainers.order")


def test_modules_are_read_and_not_imported(package: Path) -> None:
    for module in ("__init__.py", "step.py"):
        (package / module).write_text("raise RuntimeError\n")
    forget()
    assert len(source_digest("mine.step:run")) == 16
    assert "mine" not in sys.modules


def test_single_file_is_a_module_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alone_in_a_file.py"
    path.write_text("def run():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert changes("alone_in_a_file:run", path, lambda code: code.replace("1", "2"))


@pytest.mark.parametrize("entry", ["nowhere", "nowhere.at:all", "trainers.nowhere", "sys"])
def test_module_without_source_is_named(entry: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=re.escape(repr(entry.partition(":")[0]))):
        source_digest(entry)


def test_module_that_is_no_python_is_named(package: Path) -> None:
    (package / "step.py").write_text("def run(:\n")
    with pytest.raises(SyntaxError) as caught:
        source_digest("mine.step")
    assert caught.value.filename == str(package / "step.py")


def test_every_stage_has_its_sources_and_they_begin_with_it() -> None:
    assert STAGE_SOURCES.keys() == STAGE_VERSIONS.keys()
    for kind, (first, *_) in STAGE_SOURCES.items():
        stage = execution._stage(kind)
        assert first == f"{stage.__module__}:{stage.__name__}"
        assert list(inspect.signature(stage).parameters) == ["context"]
    assert len({stage_digest(kind) for kind in STAGE_SOURCES}) == len(STAGE_SOURCES)


def test_glue_that_stages_import_is_counted_or_left_out_for_a_reason() -> None:
    counted = {entry.partition(":")[0] for entries in STAGE_SOURCES.values() for entry in entries}
    for kind, entries in STAGE_SOURCES.items():
        own = {entry.partition(":")[0] for entry in entries}
        imported = {name for entry in entries for name in sources._code(entry).imports}
        modules = {
            parent
            for name in imported
            for parent in sources._with_parents(name)
            if name.startswith(("workflows.", "cluster.")) and "." in parent
        }
        missing = {name for name in modules - own - PLUMBING.keys() if sources._file(name)}
        assert missing == set(), kind
    assert not counted & PLUMBING.keys()


@pytest.mark.parametrize("kind", STAGE_SOURCES)
def test_what_a_stage_names_of_trainers_or_final_is_counted(kind: str) -> None:
    """The names are found by other means here: in the text of the function alone."""
    entries = STAGE_SOURCES[kind]
    module, _, function = entries[0].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    trainers = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "trainers"
        for alias in node.names
    }
    (stage,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    text = ast.unparse(stage)
    named = {f"trainers.{name}" for name in trainers if re.search(rf"\b{name}\.\w", text)}
    assert named <= sources._code(entries[0]).imports
    if module != "workflows.final":
        of_final = set(re.findall(r"\bfinal\.(\w+)", text))
        assert {f"workflows.final:{name}" for name in of_final} <= set(entries)


DIGESTS = """
import json, sys
from workflows.sources import STAGE_SOURCES, stage_digest
print(json.dumps({kind: stage_digest(kind) for kind in STAGE_SOURCES}))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def digests(folder: Path) -> tuple[dict[str, str], set[str]]:
    """Those of all stages by the code in a folder, and the packages that were loaded for them."""
    answer = subprocess.run(
        [sys.executable, "-c", DIGESTS], cwd=folder, capture_output=True, text=True, check=True
    )
    first, second = answer.stdout.splitlines()
    return json.loads(first), set(second.split())


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        (
            "trainers/zero.py",
            '"zero_allow_untested_optimizer": True',
            '"zero_allow_untested_optimizer": False',
            {"pretrain", "probe", "tune", "final", "promote"},
        ),
        ("trainers/pretrain.py", "_REPORTS = 100", "_REPORTS = 99", {"pretrain"}),
        (
            "trainers/baselines.py",
            "from collections",
            "import random\nfrom collections",
            {"final", "probe"},
        ),
        ("workflows/promotion.py", "gain.p > 1.0", "gain.p >= 1.0", {"promote", "promote_base"}),
        ("workflows/tokenizing.py", "len(built)", "len(built) + 1", {"tokenizer"}),
        (
            "workflows/pretraining.py",
            "micro_batch_size=size",
            "micro_batch_size=1",
            {"pretrain"},
        ),
        ("workflows/tokenizing.py", "import corpus, ", "import order, corpus, ", set()),
        ("cluster/trials.py", "\nimport", "\nimport random\nimport", {"tune"}),
        ("workflows/final.py", "reverse=True", "reverse=False", {"tune", "final", "report"}),
        ("workflows/journal.py", "\nimport", "\nimport random\nimport", set()),
        ("cluster/gang.py", "\nimport", "\nimport random\nimport", set()),
    ],
)
def test_change_of_our_code_is_seen_by_the_stages_it_reaches(
    tmp_path: Path, module: str, old: str, new: str, expected: set[str]
) -> None:
    for package in ("trainers", "workflows", "cluster"):
        shutil.copytree(ROOT / package, tmp_path / package)
    before, _ = digests(tmp_path)
    path = tmp_path / module
    code = path.read_text(encoding="utf-8")
    assert old in code
    path.write_text(code.replace(old, new, 1), encoding="utf-8")
    after, _ = digests(tmp_path)
    changed = {kind for kind in before if before[kind] != after[kind]}
    assert changed == expected


def test_nothing_heavy_is_loaded() -> None:
    _, loaded = digests(ROOT)
    assert loaded & {"workflows", "trainers", "cluster", "pydantic", "torch", "ray"} == {
        "workflows"
    }


def test_each_file_is_read_once_for_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    parsed: list[str] = []
    parse = ast.parse

    def noting(source: str, *arguments: Any, **settings: Any) -> ast.Module:
        parsed.append(source)
        return parse(source, *arguments, **settings)

    monkeypatch.setattr(ast, "parse", noting)
    for _ in range(2):
        for kind in STAGE_SOURCES:
            stage_digest(kind)
    assert len(parsed) > 20
    assert len(parsed) == len(set(parsed))
