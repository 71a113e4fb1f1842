"""The viewer's response page as a moving picture: `python benchmarks/view_film.py RUN_DIR docs/response.webp`.

From the list of responses whose answer is right and that the vote flags, into one of them: credit by token, then its
token rewards, then the text of a critique that flags a step. Real pages in a real browser, a few seconds each. Needs
Chromium and Pillow. Leaves out single pictures of every page (view_pictures) and a program's output (film).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browser
from view_pictures import shown
from view_server import serving

WIDTH, HEIGHT = 1000, 620
"""Pixels."""
EACH_S = 2.5
COLOURS = 64
"""Of a picture: the page has few, and the file is a third of what it is with all shades of its letters' edges."""


def scenes(page: browser.Page, base: str, run_dir: Path, folder: Path) -> list[Path]:
    """A picture of each, in their order."""
    entry = shown(run_dir)
    one = urlencode({"step": entry.step, "prompt": entry.prompt_id, "index": entry.index})
    files: list[Path] = []

    def picture() -> None:
        page.wait("new Promise(done => setTimeout(() => done(true), 1000))")  # until all is drawn
        files.append(folder / f"{len(files)}.png")
        page.picture(files[-1])

    page.look(width=WIDTH, height=HEIGHT)
    page.open(f"{base}/responses?answer=correct&verdict=flagged")
    page.wait_for("blame is underlined")
    picture()
    page.open(f"{base}/response?{one}")
    page.wait_for("Tokens by reasoning step")
    picture()
    page.click("button", "token reward")
    page.wait("document.querySelector('.tok i').title.includes('reward')")
    picture()
    page.click(".flags a", "✗")
    page.wait("[...document.querySelectorAll('details.critique')].some(critique => critique.open)")
    picture()
    return files


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    run_dir, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, serving(run_dir) as base, browser.page() as page:
        files = scenes(page, base, run_dir, Path(folder))
        first, *others = [Image.open(file).convert("RGB").quantize(COLOURS).convert("RGB") for file in files]
        frames = {"save_all": True, "append_images": others, "duration": int(1000 * EACH_S), "loop": 0}
        first.save(out, lossless=True, method=6, **frames)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
