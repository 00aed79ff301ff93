"""The checker does what an API server does before it stores a custom resource."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from schemas import Document, Kind, load

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "x-kubernetes-validations": [
                {"rule": "self.size <= self.limits.most", "message": "size is above the most"},
                {"rule": "self.size == oldSelf.size"},
            ],
            "properties": {
                "size": {"type": "integer", "format": "int32", "default": 1},
                "limits": {
                    "type": "object",
                    "default": {},
                    "properties": {"most": {"type": "integer", "default": 4}},
                },
                "port": {
                    "x-kubernetes-int-or-string": True,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                },
                "note": {"type": "string", "nullable": True},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "groups": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"count": {"type": "integer", "default": 1}},
                    },
                },
            },
        }
    },
}


@pytest.fixture
def kind(tmp_path: Path) -> Kind:
    """A kind whose schema has one of everything."""
    path = tmp_path / "schemas.json"
    path.write_text(json.dumps({"example.org/v1/Thing": SCHEMA}), encoding="utf-8")
    return load(path)["example.org/v1", "Thing"]


def thing(**spec: Any) -> Document:
    """One with a spec."""
    metadata = {"name": "a"}
    return {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": metadata, "spec": spec}


def test_defaults_are_filled_in_those_of_defaults_too(kind: Kind) -> None:
    assert kind.complete(thing(groups=[{}]))["spec"] == {
        "size": 1,
        "limits": {"most": 4},
        "groups": [{"count": 1}],
    }


def test_nulls_are_taken_out_where_they_are_not_allowed(kind: Kind) -> None:
    assert kind.complete(thing(size=None, port=None, note=None))["spec"] == {
        "size": 1,
        "limits": {"most": 4},
        "note": None,
    }


def test_checking_changes_nothing(kind: Kind) -> None:
    document = thing(port=None)
    before = copy.deepcopy(document)
    assert kind.faults(document) == []
    assert document == before


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"port": 80}, None),
        ({"port": "http"}, None),
        ({"labels": {"any": "thing"}, "free": {"any": 1}}, None),
        ({"port": 1.5}, "spec.port: 1.5 is not of type 'integer', 'string'"),
        ({"size": 5}, "spec: size is above the most"),
        ({"size": 5, "limits": {"most": 9}}, None),
        ({"limits": {"most": 2**31}, "size": 2**31}, "spec.size: 2147483648 is greater than"),
        ({"labels": {"a": 1}}, "spec.labels.a: 1 is not of type 'string'"),
        ({"sise": 1}, "spec: Additional properties are not allowed ('sise' was unexpected)"),
        ({"groups": [{"cuont": 1}]}, "spec.groups.0: Additional properties are not allowed"),
    ],
)
def test_what_is_refused(kind: Kind, spec: dict[str, Any], fault: str | None) -> None:
    found = [str(one) for one in kind.faults(thing(**spec))]
    assert len(found) == (0 if fault is None else 1)
    assert all(one.startswith(fault or "") for one in found)


def test_metadata_is_closed_too(kind: Kind) -> None:
    document = thing()
    document["metadata"]["lables"] = {}
    assert "lables" in str(kind.faults(document)[0])


def test_kind_is_the_schemas_own(kind: Kind) -> None:
    assert [fault.path for fault in kind.faults(thing() | {"kind": "Other"})] == ["kind"]
