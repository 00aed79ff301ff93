import subprocess
from pathlib import Path

from workflows.history import commit_of


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_of_a_folder_and_whether_it_was_changed_since(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    git(tmp_path, "init", "-q")
    (tmp_path / "pipelines" / "a.yaml").write_text("a")
    assert commit_of(tmp_path / "pipelines") is None  # nothing was committed yet
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "v1")
    assert commit_of(tmp_path / "pipelines") == commit
    (tmp_path / "pipelines" / "a.yaml").write_text("b")
    assert commit_of(tmp_path / "pipelines") == f"{commit}-dirty"


def test_outside_of_a_repository_there_is_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "nowhere") is None
