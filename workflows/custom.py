"""Steps of the user's own: found, called, and held to what every step owes."""

import ast
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.errors import DataError
from workflows.sources import importable

if TYPE_CHECKING:
    from workflows.execution import StageContext


@dataclass(frozen=True)
class CustomStep:
    """All that a user's function is given. What it writes to `output` is kept."""

    spec: Mapping[str, Any]
    """As it stands in the pipeline file."""

    inputs: Mapping[str, Path]
    """Output folders of its inputs by the step's name; only to be read."""

    facts: Mapping[str, Mapping[str, Any]]
    """What those steps found worth telling, by the step's name."""

    files: Mapping[str, Path]
    """Outside files and folders by the name in the pipeline file; only to be read."""

    output: Path
    """An empty folder for what is kept."""

    should_stop: Callable[[], bool]
    """Whether the run was asked to end."""


def run(context: "StageContext") -> Mapping[str, Any]:
    """Call the user's function; what it returns are the step's facts.

    Raises:
        DataError: it returned something else than a mapping that JSON can hold, or nothing.
    """
    from workflows.pipeline import CustomSpec

    spec = context.spec(CustomSpec)
    paths = {digest: Path(path) for path, digest in context.step.outside.items()}
    function = _function(spec.uses, context.run.base)
    facts = function(
        CustomStep(
            spec=spec.spec,
            inputs={name: context.input(name) for name in context.records},
            facts={name: record.facts for name, record in context.records.items()},
            files={name: paths[digest] for name, digest in spec.files.items()},
            output=context.output,
            should_stop=context.should_stop,
        )
    )
    try:
        return dict(json.loads(json.dumps(dict(facts or {}), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{spec.uses} returned {type(facts).__name__}, which cannot be kept: {error}; "
            "return nothing, or a dictionary of text, numbers and lists"
        ) from error


def problem(uses: str, base: Path) -> str | None:
    """Why there is no such function, found without running any code of its module; or None."""
    module, _, function = uses.partition(":")
    file = source_file(module, base)
    if file is None:
        return f"no module {module!r} beside the pipeline file in {base}, and none is installed"
    try:
        names = set(_names(ast.parse(file.read_text(encoding="utf-8"))))
    except (SyntaxError, ValueError) as error:
        return f"{file} is not Python: {error}"
    if function not in names:
        return f"no function {function!r} in {file}"
    return None


def source_file(module: str, base: Path) -> Path | None:
    """The file of a module beside the pipeline file, or of an installed one."""
    below = base.joinpath(*module.split("."))
    for candidate in (below.with_suffix(".py"), below / "__init__.py"):
        if candidate.is_file():
            return candidate
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin and found.has_location else None


def _function(uses: str, base: Path) -> Callable[[CustomStep], Any]:
    module, _, name = uses.partition(":")
    with importable(base):
        function: Callable[[CustomStep], Any] = getattr(importlib.import_module(module), name)
    return function


def _names(tree: ast.Module) -> Iterator[str]:
    """What a module defines or imports at its top level."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
