"""Digests of the code that stages run: tell that a result was computed by other code than today's.

Code is read, not imported. Comments, docstrings and layout do not count; names, constants and the
order of statements do. The text that is digested is Python's own dump of a syntax tree, which
differs between minor versions: compare digests only of equal `sys.version_info[:2]`.
"""

import ast
import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

STAGE_SOURCES: Mapping[str, tuple[str, ...]] = {
    "data": ("workflows.data:run",),
    "corpus": ("workflows.corpora:run",),
    "tokenizer": ("workflows.tokenizing:build",),
    "tokens": ("workflows.tokenizing:pack",),
    "pretrain": ("workflows.pretraining:run",),
    "base": ("workflows.given:run",),
    "features": ("workflows.features:run", "workflows.trainings:execution_of"),
    "probe": ("workflows.looks:look", "workflows.trainings:execution_of"),
    "branch": ("workflows.branch:take", "workflows.pretraining:CHECKPOINTS"),
    "best_probe": ("workflows.looks:choose",),
    "tune": (
        "workflows.tuning:run",
        "workflows.final:finished",
        "workflows.final:last_point",
        "workflows.final:TRIALS",
        "workflows.trainings:execution_of",
        "cluster.trials",
        "cluster.slots",
        "cluster.stages",
        "cluster.point_list",
        "cluster.results",
        "cluster.gang_trials",
        "cluster.searchers",
        "cluster.snapshots",
        "cluster.space",
    ),
    "final": ("workflows.final:run", "workflows.trainings"),
    "promote": (
        "workflows.gate:run",
        "workflows.judgement",
        "workflows.guards",
        "workflows.promotion",
        "workflows.family",
        "workflows.significance",
        "workflows.final:RESULT",
        "workflows.final:MODEL",
        "workflows.model_card",
        "workflows.mlmodel",
        "workflows.trainings:all_tested",
        "workflows.trainings:latency",
        "workflows.trainings:execution_of",
        "workflows.trainings:whole_model_worker",
    ),
    "losses": ("workflows.base_gate:measure", "workflows.trainings:whole_model_worker"),
    "promote_base": (
        "workflows.base_gate:run",
        "workflows.base_judgement",
        "workflows.judgement:Judgement",
        "workflows.guards:Measured",
        "workflows.gate:decided_before",
        "workflows.gate:facts_of",
        "workflows.family:outcome",
        "workflows.promotion",
        "workflows.significance",
        "workflows.model_card",
        "workflows.model_files:is_plain",
        "workflows.trainings:whole_model_worker",
    ),
    "report": (
        "workflows.summaries:report",
        "workflows.report",
        "workflows.report.page",
        "workflows.report.ancestry",
        "workflows.report.charts",
        "workflows.report.growth",
        "workflows.report.gathering",
        "workflows.report.headlines",
        "workflows.report.mistakes",
        "workflows.report.scoring",
        "workflows.report.searched",
        "workflows.report.timeline",
        "workflows.report.wording",
        "workflows.final:ranked",
        "workflows.final:last_point",
        "workflows.final:MODEL",
        "workflows.final:RESULT",
        "workflows.final:TRIALS",
        "workflows.family:as_it_came",
    ),
    "track": (
        "workflows.summaries:track",
        "workflows.curves",
        "workflows.tensorboard",
        "workflows.tracking",
        "workflows.mirrored_runs",
        "workflows.mirrored_models",
        "workflows.model_card:LINEAGE",
    ),
}
"""What computes each kind of step, as entries of `source_digest`; trainers are found from there.

The first is the function that is called, with the step's context.
"""

_TRAINERS = "trainers"
_GLUE = {"workflows", "cluster"}
"""Packages that serve all stages: of these counts what an entry names, and no import is followed
into them. Else every stage would differ whenever the runner or the journal does."""

_DIGITS = 16
_IMPORTS = (ast.Import, ast.ImportFrom)


def of_step(kind: str, uses: str | None, base: Path) -> str:
    """The Python version and the digest of the code that computes a step.

    Two of these tell something only when their Python versions are equal: see `are_comparable`.

    Args:
        kind: of the step.
        uses: `package.module:function` of a step of the user's own.
        base: folder of the pipeline file, where modules of the user's own are found first.
    """
    if uses is None:
        digest = stage_digest(kind)
    else:
        with importable(base):
            digest = source_digest(uses)
    return f"{sys.version_info.major}{sys.version_info.minor}-{digest}"


def are_comparable(one: str, other: str) -> bool:
    """Whether two source digests were made by the same Python version."""
    return one.partition("-")[0] == other.partition("-")[0]


@contextlib.contextmanager
def importable(base: Path) -> Iterator[None]:
    """Modules beside the pipeline file are found first."""
    sys.path.insert(0, str(base))
    try:
        yield
    finally:
        sys.path.remove(str(base))


@cache
def stage_digest(kind: str) -> str:
    """Of the code behind a kind of step of `STAGE_SOURCES`, as 16 hexadecimal digits."""
    return _digest(STAGE_SOURCES[kind])


@cache
def source_digest(entry: str) -> str:
    """Of a module and all it imports, directly or not, from `trainers` and its own package.

    Imports within functions count; what is imported by a computed name is not seen, nor what a
    package exports by other means than a file of its own folder.

    Args:
        entry: `package.module`, or `package.module:function`, which counts the whole module too.
            In `workflows` and `cluster` it counts that function, what it uses of its module, and
            what it imports from `trainers`.

    Raises:
        ModuleNotFoundError: there is no Python source of that name on `sys.path`.
        SyntaxError: a module is no Python.
    """
    return _digest((entry,))


@dataclass(frozen=True)
class _Code:
    digest: str
    imports: frozenset[str]
    """Absolute dotted names; the last part may be no module but something defined in one."""


def _digest(entries: Iterable[str]) -> str:
    waiting = [_without_function(entry) for entry in entries]
    followed = {_TRAINERS, *map(_top, waiting)} - _GLUE
    found: dict[str, str] = {}
    while waiting:
        entry = waiting.pop()
        if entry not in found:
            code = _code(entry)
            found[entry] = code.digest
            names = {parent for name in code.imports for parent in _with_parents(name)}
            waiting += [name for name in names if _top(name) in followed and _file(name)]
    lines = "".join(f"{entry} {found[entry]}\n" for entry in sorted(found))
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]


def _without_function(entry: str) -> str:
    return entry if _top(entry) in _GLUE else entry.partition(":")[0]


@cache
def _code(entry: str) -> _Code:
    module, _, definition = entry.partition(":")
    body, package = _module(module)
    outer: list[str] = []
    if definition:
        body, outer = _used(body, definition, package)
    inner = {
        target
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, _IMPORTS)
        for _, target in _bindings(node, package)
    }
    content = f"{[ast.dump(statement) for statement in body]} {outer}"
    imports = frozenset({module, *inner, *outer})
    return _Code(hashlib.sha256(content.encode()).hexdigest(), imports)


@cache
def _module(name: str) -> tuple[list[ast.stmt], str]:
    """The statements of a module without docstrings, and the package it is in."""
    file = _file(name)
    if file is None:
        raise ModuleNotFoundError(f"no Python source of module {name!r} is found", name=name)
    tree = ast.parse(file.read_bytes(), filename=str(file))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Docstrings of attributes stand anywhere in a class.
            body[:] = [statement for statement in body if not _is_text(statement)]
    return tree.body, name if file.name == "__init__.py" else name.rpartition(".")[0]


def _used(body: list[ast.stmt], definition: str, package: str) -> tuple[list[ast.stmt], list[str]]:
    """The statements that define a name and what it uses, in their order; what these import."""
    imported: dict[str, list[str]] = {}
    defining: dict[str, list[ast.stmt]] = {}
    for statement in body:
        if isinstance(statement, _IMPORTS):
            for name, target in _bindings(statement, package):
                imported.setdefault(name, []).append(target)
        for name in _defined(statement):
            defining.setdefault(name, []).append(statement)
    assert definition in defining, f"{definition} is not defined"
    used, waiting = set(), {definition}
    while waiting:
        used |= waiting
        statements = [statement for name in waiting for statement in defining.get(name, ())]
        nodes = (node for statement in statements for node in ast.walk(statement))
        waiting = {node.id for node in nodes if isinstance(node, ast.Name)} - used
    kept = {id(statement) for name in used for statement in defining.get(name, ())}
    targets = [target for name in sorted(used) for target in imported.get(name, ())]
    return [statement for statement in body if id(statement) in kept], targets


def _defined(statement: ast.stmt) -> set[str]:
    """The names a statement of a module defines, imports aside."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _bindings(node: ast.Import | ast.ImportFrom, package: str) -> list[tuple[str, str]]:
    """The names that an import statement binds, each with the absolute dotted name behind it."""
    if isinstance(node, ast.Import):
        return [(alias.asname or _top(alias.name), alias.name) for alias in node.names]
    parts = package.split(".")
    above = parts[: len(parts) + 1 - node.level] if node.level else []
    start = ".".join([*above, *([node.module] if node.module else [])])
    return [(alias.asname or alias.name, f"{start}.{alias.name}") for alias in node.names]


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _top(name: str) -> str:
    return name.partition(":")[0].partition(".")[0]


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


@cache
def _file(module: str) -> Path | None:
    """The source of a module, found without importing its package; None where there is none."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    file = Path(spec.origin) if spec.origin else None
    for name in rest:
        folders = [folder / name for folder in folders]
        places = [p for f in folders for p in (f / "__init__.py", f.with_name(f"{name}.py"))]
        file = next((place for place in places if place.is_file()), None)
    return file if file is not None and file.suffix == ".py" else None
