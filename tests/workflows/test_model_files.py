"""What is believed of a version's files, and what never is."""

import json
import random
from pathlib import Path

import pytest

from trainers import manifest
from workflows.models import ModelStore, ModelStoreError, Version
from workflows.storage import Storage

NAME = "tiny.tone"
FLIPS = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "adapter").mkdir(parents=True)
    (path / "config.json").write_text('{"id2label": {"0": "bad", "1": "good"}}')
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (path / "adapter" / "adapter_config.json").write_text("{}")
    return path


def add(where: Storage, folder: Path) -> Version:
    return ModelStore(where).add(
        NAME,
        folder,
        fingerprint="f",
        attempt="a",
        task={},
        scores={"accuracy": 0.8},
        documents={"README.md": "# tone\n", "lineage.json": "{}"},
    )


def test_a_version_holds_the_folder_its_documents_and_a_manifest_of_both(
    storage: Storage, folder: Path
) -> None:
    version, store = add(storage, folder), ModelStore(storage)
    here = store.verified(version)
    files = manifest.describe(here)
    assert files == store.facts(version)["files"]
    assert files.keys() >= {"README.md", "lineage.json", "adapter/adapter_config.json"}
    told = json.loads(store.read(version, "MANIFEST.json"))["files"]
    assert told == {name: of for name, of in files.items() if name != "MANIFEST.json"}
    assert store.damage(version) is None


def test_each_of_a_thousand_flipped_bits_is_found(local: Storage, folder: Path) -> None:
    version, store = add(local, folder), ModelStore(local)
    store.promote(version, expected=None, reason="first", run="run")
    files = [path for path in local.path(f"models/{NAME}").rglob("*") if path.is_file()]
    assert len(files) == 8  # of the version, its entry, its promotion
    generator = random.Random(0)
    for _ in range(FLIPS):
        path = generator.choice(files)
        content = path.read_bytes()
        bit = generator.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ModelStoreError):
            ModelStore(local).verified(ModelStore(local).resolve(NAME))
        path.write_bytes(content)
    assert store.damage(version) is None


@pytest.mark.parametrize("name", ["model.safetensors", "MANIFEST.json", "README.md"])
def test_damage_is_named_wherever_the_storage_is(storage: Storage, folder: Path, name: str) -> None:
    version, store = add(storage, folder), ModelStore(storage)
    place = f"{store.files(version)}/{name}"
    content = storage.read(place)
    storage.write(place, content[:-1] + bytes([content[-1] ^ 4]))
    assert store.damage(version) == f"{name} has other bytes than were written"
    storage.delete(place)
    assert store.damage(version) == f"{name} is missing"
    with pytest.raises(ModelStoreError, match=f"{name} is missing"):
        store.read(version, name)


def test_what_nobody_wrote_there_is_refused(storage: Storage, folder: Path) -> None:
    version, store = add(storage, folder), ModelStore(storage)
    storage.write(f"{store.files(version)}/pytorch_model.bin", b"\x80\x04")
    assert store.damage(version) == "pytorch_model.bin was not written there by pretune"
    with pytest.raises(ModelStoreError, match=r"pytorch_model\.bin was not written"):
        store.verified(version)


def test_a_link_out_of_the_folder_is_refused(local: Storage, folder: Path, tmp_path: Path) -> None:
    version, store = add(local, folder), ModelStore(local)
    file = local.path(f"{store.files(version)}/README.md")
    (tmp_path / "outside.md").write_bytes(file.read_bytes())  # the same bytes
    file.unlink()
    file.symlink_to(tmp_path / "outside.md")
    assert store.damage(version) == "README.md is a symbolic link"
    with pytest.raises(ModelStoreError, match="symbolic link"):
        store.verified(version)


def test_an_entry_that_was_copied_makes_no_other_version(storage: Storage, folder: Path) -> None:
    add(storage, folder)
    place = f"models/{NAME}/versions"
    storage.write(f"{place}/000002.json", storage.read(f"{place}/000001.json"))
    damage = ModelStore(storage).damage(Version(NAME, 2))
    assert damage is not None
    assert "not what was written there" in damage


@pytest.mark.parametrize("name", ["model.bin", "code.py", "all.tar.gz", "weights.pt", "noname"])
def test_a_file_that_could_carry_code_becomes_no_version(
    local: Storage, folder: Path, name: str
) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(ModelStoreError, match=name):
        add(local, folder)
    assert ModelStore(local).names() == []


def test_a_link_becomes_no_version(local: Storage, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ModelStoreError, match="symbolic link"):
        add(local, folder)


def test_a_pulled_folder_is_the_version_and_needs_no_store(
    storage: Storage, folder: Path, tmp_path: Path
) -> None:
    version, store = add(storage, folder), ModelStore(storage)
    target = tmp_path / "pulled"
    store.pull(version, target)
    storage.delete("models")
    told = json.loads((target / "MANIFEST.json").read_text())["files"]
    assert manifest.first_damage(target, told) is None
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_a_pull_writes_over_nothing_and_leaves_nothing_half(
    local: Storage, folder: Path, tmp_path: Path
) -> None:
    version, store = add(local, folder), ModelStore(local)
    with pytest.raises(ModelStoreError, match="give a new folder"):
        store.pull(version, folder)
    (tmp_path / "empty").mkdir()
    store.pull(version, tmp_path / "empty")
    local.path(f"{store.files(version)}/config.json").write_text("{}")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelStoreError, match=r"config\.json"):
        store.pull(version, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
