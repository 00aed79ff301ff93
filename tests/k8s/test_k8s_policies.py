"""Every overlay keeps every rule, and every rule is broken by one bad example with its message."""

import ast
import copy
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jsonpatch
import policies
import pytest
import yaml
from rendering import COMPONENTS, K8S, OVERLAYS, crd_kinds, render, title, with_components
from schemas import Document
from world import World

BAD = sorted(Path(__file__).with_name("bad").glob("*.yaml"))
KUEUE = render(K8S / "kueue")


def example(path: Path) -> dict[str, Any]:
    """What to change in which documents, and the message."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def broken(path: Path) -> World:
    """A folder, or the base with the components that the example asks for, made bad.

    `beside: true` keeps the document of which the bad one is made.
    """
    bad = example(path)
    good = render(K8S / bad["of"]) if "of" in bad else with_components(*bad.get("components", []))
    documents = [one for one in good if bad.get("beside") or title(one) != bad.get("target")]
    documents += [
        jsonpatch.apply_patch(copy.deepcopy(one), bad["patch"])
        for one in good
        if title(one) == bad.get("target")
    ]
    return World(tuple(documents), elsewhere=KUEUE)


def lines_that_run(worlds: list[World]) -> set[tuple[str, int]]:
    """File and line of all that runs in the policies."""
    seen: set[tuple[str, int]] = set()

    def note(frame: FrameType, event: str, argument: object) -> Any:
        path = Path(frame.f_code.co_filename)
        if not path.name.startswith("policies_"):
            return None
        seen.add((path.name, frame.f_lineno))
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        for world in worlds:
            policies.findings(world)
    finally:
        sys.settrace(before)
    return seen


def schema_faults(documents: tuple[Document, ...]) -> list[str]:
    """Of custom resources."""
    kinds = crd_kinds()
    return [
        f"{title(document)}: {fault}"
        for document in documents
        if (kind := kinds.get((document["apiVersion"], document["kind"])))
        for fault in kind.faults(document)
    ]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_overlay_keeps_every_rule(folder: Path) -> None:
    assert policies.findings(World(render(folder), elsewhere=KUEUE)) == {}


def test_objects_of_the_administrator_keep_every_rule() -> None:
    assert policies.findings(World(KUEUE)) == {}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda path: path.name)
def test_component_keeps_every_rule(component: Path) -> None:
    documents = with_components(component.name)
    assert policies.findings(World(documents, elsewhere=KUEUE)) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("kueue", "autoscale-trials"),
        ("restricted", "kueue"),
        ("mlflow", "monitoring", "auth-token"),
    ],
    ids=lambda names: "+".join(names),
)
def test_components_go_together(names: tuple[str, ...]) -> None:
    documents = with_components(*names)
    assert policies.findings(World(documents, elsewhere=KUEUE)) == {}
    assert schema_faults(documents) == []


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_example_gives_its_message_and_no_other(path: Path) -> None:
    bad, world = example(path), broken(path)
    if bad["rule"] == "schema":
        found = schema_faults(world.documents)
        assert policies.findings(world) == {}
    else:
        by_rule = policies.findings(world)
        assert set(by_rule) == {bad["rule"]}
        found = by_rule[bad["rule"]]
    assert found == [bad["message"]]


def test_every_sentence_of_a_rule_has_a_bad_example() -> None:
    ran = lines_that_run([broken(path) for path in BAD])
    silent = [
        f"{path.name}:{one.lineno}: {ast.unparse(one)}"
        for path in sorted(Path(__file__).parent.glob("policies_*.py"))
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(one, ast.Yield)
        and not any(
            (path.name, line) in ran
            for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)
        )
    ]
    assert silent == []


def test_every_rule_has_a_bad_example() -> None:
    shown = {example(path)["rule"] for path in BAD}
    assert {rule.__name__ for rule in policies.RULES} - shown == set()
    assert "schema" in shown
