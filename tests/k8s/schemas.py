"""Custom resources as an API server takes them: nulls pruned, defaults filled, all else refused.

The schemas are those of the CRDs, with their CEL rules; no cluster is needed.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cel
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

Document = dict[str, Any]

_INT32 = 2**31
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {
            "type": "string",
            "maxLength": 253,
            "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        },
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array"},
        "managedFields": {"type": "array"},
        "uid": {"type": "string"},
        "resourceVersion": {"type": "string"},
        "generation": {"type": "integer"},
        "creationTimestamp": {"type": ["string", "null"]},
        "deletionTimestamp": {"type": "string"},
    },
}
_IGNORED = {"description", "default", "example", "nullable", "format"}
_OF_ONE, _OF_MANY = ("items", "additionalProperties", "not"), ("anyOf", "allOf", "oneOf")


class Fault(NamedTuple):
    """Why a document would be refused."""

    path: str
    """Names and indices, joined by dots; empty for the whole."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Kind:
    """One kind of custom resource."""

    schema: Mapping[str, Any]
    """As the CRD has it."""
    validator: Draft202012Validator

    def complete(self, document: Document) -> Document:
        """A copy as it would be stored."""
        completed: Document = _completed(self.schema, copy.deepcopy(document))
        return completed

    def faults(self, document: Document) -> list[Fault]:
        """What an API server would refuse, in the order of the document's paths."""
        stored = self.complete(document)
        errors = sorted(self.validator.iter_errors(stored), key=lambda e: [*map(str, e.path)])
        found = [Fault(".".join(map(str, e.absolute_path)), e.message[:300]) for e in errors]
        return [*found, *_broken_rules(self.schema, stored, ())]


@cache
def load(path: Path) -> dict[tuple[str, str], Kind]:
    """By apiVersion and kind, from a file of `group/version/kind` to structural schema."""
    kinds = {}
    for key, schema in json.loads(path.read_text(encoding="utf-8")).items():
        group, version, kind = key.split("/")
        strict = _strict(schema)
        strict["properties"] |= {
            "apiVersion": {"const": f"{group}/{version}"},
            "kind": {"const": kind},
            "metadata": _METADATA,
        }
        kinds[f"{group}/{version}", kind] = Kind(schema, Draft202012Validator(strict))
    return kinds


def _strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema as JSON Schema: what it does not name is an error."""
    strict: dict[str, Any] = {}
    for key, value in node.items():
        if key in _IGNORED or key.startswith("x-kubernetes-"):
            continue
        if key == "properties":
            strict[key] = {name: _strict(below) for name, below in value.items()}
        elif key in _OF_ONE and isinstance(value, Mapping):
            strict[key] = _strict(value)
        elif key in _OF_MANY:
            strict[key] = [_strict(below) for below in value]
        else:
            strict[key] = value
    if node.get("format") == "int32":
        strict = {"minimum": -_INT32, "maximum": _INT32 - 1} | strict
    if node.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    if node.get("nullable") and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    if _is_closed(node):
        strict["additionalProperties"] = False
    return strict


def _is_closed(node: Mapping[str, Any]) -> bool:
    is_open = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    return "properties" in node and node.get("type") == "object" and not is_open


def _below(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Schema of an object's field; empty where it has none."""
    found = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
    return found if isinstance(found, Mapping) else {}


def _completed(schema: Mapping[str, Any], value: Any) -> Any:
    """Nulls are taken out and defaults filled in, those of the defaults' own fields, too."""
    if isinstance(value, dict):
        for name in [n for n, v in value.items() if v is None]:
            if not _below(schema, name).get("nullable"):
                del value[name]
        for name, below in schema.get("properties", {}).items():
            if name not in value and "default" in below:
                value[name] = copy.deepcopy(below["default"])
        for name in value:
            _completed(_below(schema, name), value[name])
    elif isinstance(value, list):
        for item in value:
            _completed(schema.get("items", {}), item)
    return value


def _broken_rules(schema: Mapping[str, Any], value: Any, path: tuple[str, ...]) -> Iterator[Fault]:
    """Of all CEL rules but those about changes, which need the object as it was."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield from _broken_rule(rule, value, ".".join(path))
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _broken_rules(_below(schema, name), item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(schema.get("items", {}), item, (*path, str(index)))


def _broken_rule(rule: Mapping[str, Any], value: Any, path: str) -> Iterator[Fault]:
    try:
        holds = cel.evaluate(rule["rule"], {"self": value})
    except (ValueError, TypeError, RuntimeError) as error:
        # A value of the wrong type, which the schema tells better; or a rule that cel cannot do.
        yield Fault(path, f"the rule {rule['rule']!r} cannot be evaluated: {error}")
        return
    if holds is not True:
        yield Fault(path, rule.get("message") or f"must hold: {rule['rule']}")
