"""Writes `docs/reference.md` from the schemas and the commands; a test compares."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.space import Range
from trainers.task_config import Hyperparameters
from workflows.cli import app
from workflows.config import PipelineConfig

PAGE = Path(__file__).with_name("reference.md")

HEAD = """# Reference

Every key of the pipeline file and every command, made from the schemas and the commands themselves
by `python docs/make_reference.py`; a test sees that it is true. What to choose, and why:
[tutorial](tutorial.md), [corpus](corpus.md), [pretraining](pretraining.md), [tasks](tasks.md),
[clusters](clusters.md).
"""
_SPACE = "space"
"""The key whose values are what anybody may draw from; they are told by themselves."""


def page() -> str:
    """The whole file."""
    return "\n".join([HEAD, *_keys(), "## Commands\n", *_commands(typer.main.get_command(app))])


def _keys() -> Iterator[str]:
    yield "## The pipeline file\n"
    yield from _section(PipelineConfig, "")
    yield "### `tasks.NAME.search.space`\n"
    yield (
        "Hyperparameters, each a value, a list to choose from, a range (below), or choices with "
        "hyperparameters of their own, as in `method: {lora: {lora_rank: [4, 8]}, head: {}}`.\n"
    )
    yield from _table(Hyperparameters)
    yield from _table(Range)


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of a section's keys, and the sections in it."""
    yield f"### `{prefix.removesuffix('.')}`\n" if prefix else "### The file itself\n"
    yield from _table(model)
    for name, field in model.model_fields.items():
        if name == _SPACE:
            continue
        for inner, placeholder in _models(field.annotation):
            yield from _section(inner, f"{prefix}{field.alias or name}{placeholder}.")


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        default = _default(field)
        kind = "section" if name == _SPACE else _type(field.annotation)
        yield f"| `{field.alias or name}` | {kind} | {default} | {meaning} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


def _models(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Schemas in a type, each with what stands for the names or places before it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif origin is Annotated or origin in (Union, UnionType):
        for one in arguments[: 1 if origin is Annotated else None]:
            yield from _models(one)
    elif origin in (list, dict):
        placeholder = ".N" if origin is list else ".NAME"
        yield from ((model, placeholder + rest) for model, rest in _models(arguments[-1]))


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in arguments if one is not NoneType)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[1])} by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
    return names.get(annotation, "any")


def _commands(group: Any, path: str = "pretune") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([path, *map(_named, arguments)])
    yield f"### `{path}`\n"
    yield f"`{usage}`\n"
    yield re.sub(r"\n\s*\n", "\n\n", (command.help or "").replace("\b", "")).strip() + "\n"
    options = [one for one in command.params if one.param_type_name == "option"]
    if options:
        yield "| option | meaning |\n|---|---|"
        for one in options:
            names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
            yield f"| {names} | {(one.help or '').replace('|', chr(92) + '|')} |"
        yield ""


def _named(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
