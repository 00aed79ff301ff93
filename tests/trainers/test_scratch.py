import subprocess
import sys
from pathlib import Path

import pytest

from trainers import scratch
from trainers.errors import DataError

FIELD = "pretrain.zero.nvme_path"
HOLD = f"""
import sys, time
from pathlib import Path
from trainers import scratch

with scratch.own_folder(Path(sys.argv[1]), field="{FIELD}") as folder:
    (folder / "state").write_text("large")
    print(folder, flush=True)
    time.sleep(60)
"""


def folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()]


def fail_within(parent: Path) -> None:
    with scratch.own_folder(parent, field=FIELD) as folder:
        (folder / "state").write_text("large")
        assert folders(parent) == [folder]
        raise KeyError


def test_folder_is_gone_at_the_end_and_its_parent_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disks" / "nvme0"
    with pytest.raises(KeyError):
        fail_within(disk)
    assert folders(disk) == []


def test_folder_of_a_living_process_stays_and_of_a_killed_one_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        of_other = Path(other.stdout.readline().strip())
        with scratch.own_folder(tmp_path, field=FIELD) as folder:
            assert sorted(folders(tmp_path)) == sorted([folder, of_other])
        other.kill()
    assert (of_other / "state").exists()
    with scratch.own_folder(tmp_path, field=FIELD) as folder:
        assert folders(tmp_path) == [folder]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "pretune-notes").mkdir()
    with scratch.own_folder(tmp_path, field=FIELD):
        pass
    assert folders(tmp_path) == [tmp_path / "pretune-notes"]


def test_place_that_cannot_be_written_is_told_with_field_and_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(DataError, match=rf"{FIELD}: .*file/disk.*Not a directory.*name a folder"),
        scratch.own_folder(tmp_path / "file" / "disk", field=FIELD),
    ):
        pass
