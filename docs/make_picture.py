"""Writes `docs/report.png`: `python docs/make_picture.py REPORT.html TASK`.

Needs Chromium (`apt-get install chromium`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).with_name("report.png")
WIDTH, HEIGHT = 1000, 1480


def take(report: Path, task: str, picture: Path) -> None:
    """Write what a browser shows of a report's summary and one task as PNG, `WIDTH` x `HEIGHT`.

    Raises:
        FileNotFoundError: there is no Chromium, or it wrote nothing.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no chromium is installed here")
    page = report.read_text(encoding="utf-8")
    kept = f"[aria-labelledby=summary], [aria-labelledby='task-{task}']"
    style = f"<style>section:not({kept}), nav {{ display: none }}</style></head>"
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part.html")
        part.write_text(page.replace("</head>", style, 1), encoding="utf-8")
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}"),
            f"--screenshot={picture}",
        ]
        subprocess.run([chromium, *options, part.as_uri()], check=True, timeout=300)
    if not picture.is_file():
        raise FileNotFoundError(f"{chromium} wrote no {picture}")


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2], PICTURE)
