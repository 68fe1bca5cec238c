"""The picture of a report in the README: runs the demo's study and takes a screenshot with headless Chromium.

python benchmarks/picture.py        # needs a `chromium` on the path; writes docs/report.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH, HEIGHT = 1400, 2700
PARTS = ((0, 1024), (2070, 2660))  # the head with the best treatments, and the effects


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("picture.py needs Chromium on the path, e.g. Debian's package chromium.")
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "demo"
        command = ["study", "digits", "--out", str(study)]
        subprocess.run([sys.executable, "-m", "homeostat", *command], check=True, stdout=subprocess.DEVNULL)
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
        page = (study / "report.html").as_uri()
        subprocess.run([browser, *options, page], check=True, stderr=subprocess.DEVNULL)
        with Image.open(shot) as picture:
            whole = Image.new("RGB", (WIDTH, sum(bottom - top for top, bottom in PARTS)))
            start = 0
            for top, bottom in PARTS:
                whole.paste(picture.crop((0, top, WIDTH, bottom)), (0, start))
                start += bottom - top
            whole.quantize(128).save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    main()
