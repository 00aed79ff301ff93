"""What a model may be used for, as far as its folder says so."""

from pathlib import Path

import huggingface_hub
import yaml


def of(folder: Path) -> str | None:
    """What a folder's model card says of its licence; None where it says nothing."""
    try:
        told = huggingface_hub.metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = told.get("license_name") or told.get("license")
    return ", ".join(map(str, found)) if isinstance(found, list) else found and str(found)
