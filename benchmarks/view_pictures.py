"""Pictures of the viewer's pages, light and dark, narrow and wide: `python benchmarks/view_pictures.py RUN_DIR FOLDER`.

For whoever changes how it looks; `docs/view.png` is `response-1280-light.png` of a finished run of tiny_cpu. Shows the
newest response whose answer is right and that the vote flags, else the newest; then what is shown where something is
not there. Needs Chromium. Leaves out how fast the pages are (view_page).
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browser
from view_server import serving

from capo_ray.view.index import Index
from capo_ray.view.records import Entry

WINDOWS = {1600: 1000, 1280: 760, 420: 900}
"""Width and height in pixels."""


def shown(run_dir: Path) -> Entry:
    index = Index(run_dir)
    index.refresh()
    if not index.entries:
        sys.exit(f"{run_dir} holds no response that can be shown")
    newest = sorted(index.entries, key=lambda entry: entry.key, reverse=True)
    return next((entry for entry in newest if entry.answer == "correct" and entry.flagged), newest[0])


def main() -> None:
    run_dir, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    entry = shown(run_dir)
    one = urlencode({"step": entry.step, "prompt": entry.prompt_id, "index": entry.index})
    pages = {
        "curves": ("/", "Tokens per second"),
        "responses": ("/responses", "blame is underlined"),
        "response": (f"/response?{one}", "Tokens by reasoning step"),
        "problem": (f"/problem?{urlencode({'id': entry.problem})}", "was sampled"),
        "flagged": ("/flagged", "flagged by the vote"),
        "no-response": ("/response?step=99&prompt=none@0&index=1", "There is no response"),
        "no-problem": ("/problem?id=none", "No response to"),
        "no-match": ("/responses?steps=lots&tokens=9-1", "No response is like that"),
    }
    with serving(run_dir) as base, browser.page() as page:
        for name, (path, awaited) in pages.items():
            for width, height in WINDOWS.items():
                for dark in (False, True):
                    page.look(width=width, height=height, dark=dark)
                    page.open(base + path)
                    page.wait_for(awaited)
                    page.wait("new Promise(done => setTimeout(() => done(true), 1000))")  # until curves are drawn
                    file = folder / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                    page.picture(file)
                    print(file)


if __name__ == "__main__":
    main()
