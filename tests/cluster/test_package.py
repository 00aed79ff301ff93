import os
import zipfile
from pathlib import Path

import pytest

from cluster import package
from cluster.package import PackageError, names, pack


def write(folder: Path, *files: str, content: str = "x") -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)


def ignore(folder: Path, *lines: str, file: str = ".gitignore") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("\n".join(lines))


def test_ignore_files_are_understood_as_git_does(tmp_path: Path) -> None:
    write(
        tmp_path, "a.yaml", "run.log", "kept.log", "data/x.csv", "deep/build/o", "deep/y", "build/o"
    )
    ignore(tmp_path, "*.log", "!kept.log", "/build/", "data/")
    ignore(tmp_path / "deep", "y")
    found = names(tmp_path)
    assert found == [".gitignore", "a.yaml", "deep/.gitignore", "deep/build/o", "kept.log"]


def test_rayignore_has_the_last_word(tmp_path: Path) -> None:
    write(tmp_path, "data/x.csv", "data/large.bin", "secret")
    ignore(tmp_path, "data/")
    ignore(tmp_path, "!data/", "*.bin", "secret", file=".rayignore")
    assert names(tmp_path) == [".gitignore", ".rayignore", "data/x.csv"]


def test_repositories_environments_and_storages_are_never_sent(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a",
        ".git/HEAD",
        "venv/pyvenv.cfg",
        "venv/lib/x",
        "m/__pycache__/m.pyc",
        "store/v",
    )
    assert names(tmp_path, leave_out=[tmp_path / "store"]) == ["a"]


def test_links_to_files_are_sent_as_files_and_links_to_folders_are_not(tmp_path: Path) -> None:
    write(tmp_path, "other/a")
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "file").symlink_to(tmp_path / "other" / "a")
    (folder / "folder").symlink_to(tmp_path / "other")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    assert names(folder) == ["file"]


def test_equal_files_make_one_package_and_others_another(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write(folder, "a/b", "c")
    (folder / "c").chmod(0o755)
    first = pack(folder, tmp_path)
    os.utime(folder / "c", (1, 1))
    assert pack(folder, tmp_path).uri == first.uri
    with zipfile.ZipFile(first.path) as archive:
        assert archive.namelist() == ["a/b", "c"]
        assert archive.getinfo("c").external_attr >> 16 & 0o777 == 0o755
    assert first.uri == f"gcs://{first.path.name}"
    assert first.size_bytes == first.path.stat().st_size
    write(folder, "c", content="y")
    assert pack(folder, tmp_path).uri != first.uri


def test_too_much_is_refused_and_the_largest_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MOST_BYTES", 2_000_000)
    write(tmp_path, "small")
    write(tmp_path, "huge.bin", content="x" * 2_000_000)
    with pytest.raises(PackageError, match=r"2 MB to send.*\.rayignore.*huge\.bin \(2 MB\), small"):
        pack(tmp_path, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge.bin", "small"]
