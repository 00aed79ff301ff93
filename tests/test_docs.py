"""Documents and examples are true: links lead somewhere, commands exist, pipelines plan."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from workflows import cli
from workflows.config import PipelineConfig, load_config
from workflows.outside import OutsideData
from workflows.pipeline import build_steps

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("k8s/*.md")]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def planned_kinds(config: PipelineConfig) -> set[str]:
    """The kinds of a pipeline's steps, whatever its data are."""
    files: dict[str, tuple[str, str]] = {}
    nothing = OutsideData(
        corpus={},
        sources=(),
        tokenizer={},
        model={},
        base=config.base,
        tasks=dict.fromkeys(config.tasks, files),
        custom=dict.fromkeys(config.steps, files),
    )
    return {step.kind for step in build_steps(config, nothing)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(document: Path) -> None:
    commands = re.findall(r"^pretune ((?:models |k8s )?[a-z-]+)", document.read_text("utf-8"), re.M)
    targets = re.findall(r"^make ([a-z]+)", document.read_text("utf-8"), re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        answer = CliRunner().invoke(cli.app, [*command.split(), "--help"])
        assert answer.exit_code == 0, command
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_loads_and_plans(example: Path) -> None:
    kinds = planned_kinds(load_config(example))
    assert kinds >= {"tune", "final", "promote", "report"}
    assert ("pretrain" in kinds) != ("base" in kinds)


def test_pipeline_in_the_readme_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    PipelineConfig.model_validate(yaml.safe_load(text))


def test_pipelines_of_the_recipes_plan() -> None:
    text = (ROOT / "docs" / "how-to.md").read_text("utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    for block in blocks:
        whole = block if "name" in block else blocks[0] | block  # as the page says
        assert planned_kinds(PipelineConfig.model_validate(whole)) >= {"tune", "final", "promote"}


def test_reference_is_what_schemas_and_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_reference

    assert make_reference.PAGE.read_text("utf-8") == make_reference.page(), (
        "python docs/make_reference.py makes it anew"
    )


def test_tables_about_scale_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import scale_model

    text = scale_model.PAGE.read_text("utf-8")
    assert scale_model.page(text) == text, "python docs/scale_model.py writes them anew"
    for case in scale_model.CASES:
        simulated = scale_model.simulated_goodput(case)
        assert simulated == pytest.approx(scale_model.goodput(case), abs=0.005)


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in ("workflows", "trainers", "cluster"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or path.name in text, path


def test_every_direct_dependency_has_a_reason_and_an_exact_version() -> None:
    declared = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M
    )
    assert declared is not None
    names = re.findall(r'"([a-z0-9-]+)', declared.group(1))
    assert len(names) > 15
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").lower()
    for name in names:
        assert f"`{name}" in reasons, name
        assert re.search(rf"^{name}==", locked, re.M), name
