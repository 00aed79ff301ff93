"""Writes `docs/report.png`, the picture of a report: `python docs/make_picture.py REPORT.html`.

Needs Chromium (`apt-get install chromium`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).with_name("report.png")
WIDTH, HEIGHT = 1000, 1500


def take(report: Path, picture: Path) -> None:
    """Write what a browser shows of a report's beginning as PNG, `WIDTH` x `HEIGHT` pixels.

    Raises:
        FileNotFoundError: there is no Chromium, or it wrote nothing.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no chromium is installed here")
    with tempfile.TemporaryDirectory() as profile:
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"),
            f"--screenshot={picture}",
        ]
        subprocess.run([chromium, *options, report.resolve().as_uri()], check=True, timeout=300)
    if not picture.is_file():
        raise FileNotFoundError(f"{chromium} wrote no {picture}")


if __name__ == "__main__":
    take(Path(sys.argv[1]), PICTURE)
