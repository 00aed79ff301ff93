"""The verbs that make Kubernetes manifests."""

import os
from pathlib import Path
from typing import Annotated

import typer

from workflows.config import load_config
from workflows.console import PipelineFile, out, usage_error
from workflows.kustomization import Place, overlay

k8s = typer.Typer(help="Manifests for Kubernetes.", no_args_is_help=True)


@k8s.callback()
def _several() -> None:
    """Manifests for Kubernetes."""


@k8s.command()
def render(
    pipeline: PipelineFile,
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="The overlay: a new folder.")],
    base: Annotated[
        Path, typer.Option("--k8s", metavar="FOLDER", help="The folder k8s of Pretune.")
    ] = Path("k8s"),
    schedule: Annotated[str | None, typer.Option(metavar="CRON", help="When it runs.")] = None,
    timezone: Annotated[str | None, typer.Option(metavar="TZ", help="Of the schedule.")] = None,
    queue: Annotated[str | None, typer.Option(help="LocalQueue of Kueue.")] = None,
    image: Annotated[str | None, typer.Option(metavar="NAME:TAG", help="Of all pods.")] = None,
    storage: Annotated[str | None, typer.Option(help="Where what is made is kept.")] = None,
    component: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of k8s/components; several times.")
    ] = None,
    gpus_per_pod: Annotated[
        int, typer.Option(min=1, help="Of a node, which one pod has all of.")
    ] = 8,
    trial_pods: Annotated[int, typer.Option(min=1, help="For the searches.")] = 1,
) -> None:
    """Write an overlay whose pods hold what the pipeline's section `cluster` asks for.

    Groups have the CPUs and GPUs of the workers, and memory by ZeRO's plan. `kubectl apply -k`
    takes it; render it anew when `cluster` changes.

    Example: `pretune k8s render pipeline.yaml --into k8s/overlays/mine --schedule "0 2 * * *"`
    """
    if not (base / "base" / "kustomization.yaml").is_file():
        raise usage_error(f"{base}: no base/kustomization.yaml there; give --k8s")
    missing = [name for name in component or () if not (base / "components" / name).is_dir()]
    if missing:
        known = ", ".join(sorted(path.name for path in (base / "components").iterdir()))
        raise usage_error(f"--component {missing[0]}: there are {known}")
    if into.exists():
        raise usage_error(f"{into} exists; remove it, or take another folder")
    config = load_config(pipeline)
    place = Place(
        os.path.relpath(base.resolve(), into.resolve()),
        gpus_per_pod,
        trial_pods,
        schedule=schedule,
        timezone=timezone,
        queue=queue,
        image=image,
        storage=storage,
        components=component or (),
    )
    files = overlay(config, pipeline.read_text(encoding="utf-8"), place)
    into.mkdir(parents=True)
    for name, text in files.items():
        (into / name).write_text(text, encoding="utf-8")
    out.print(f"kubectl apply -k {into}", markup=False, highlight=False, soft_wrap=True)
