"""What a part of the check knows, and where it writes what it finds.

Figures are on disk as soon as they are known, so that a part that hangs or is killed has lost none of them. Leaves out
the process that a part runs in (`child`) and what its files come to (`watching`, `report`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Device = Literal["cpu", "gpu"]

FIGURES, WORD, END, SCRATCH = "figures.json", "word", "end.json", "scratch"
"""In a part's folder: what was measured, what it is at, how it ended where it could say so, what goes when it ends."""


class Cannot(RuntimeError):
    """This part cannot be done here, whatever is mended on the way; the message says why."""


class Notes:
    """What a part knows of the check, and where it writes."""

    def __init__(self, folder: Path, device: Device) -> None:
        self.folder, self.device = folder, device
        self._figures: dict[str, Any] = {}

    @property
    def on_gpu(self) -> bool:
        return self.device == "gpu"

    @property
    def scratch(self) -> Path:
        """A folder that is removed when the part has ended."""
        folder = self.folder / SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def say(self, word: str) -> None:
        """What is being done now: shown while it lasts, and named where it was the last."""
        print(f"-- {word}", flush=True)
        write(self.folder / WORD, word)

    def put(self, **figures: Any) -> None:
        """Figures by name; values are what JSON holds."""
        self._figures |= figures
        write(self.folder / FIGURES, json.dumps(self._figures))

    def add(self, name: str, row: dict[str, Any]) -> None:
        """One more row of the list of figures called `name`."""
        self.put(**{name: [*self._figures.get(name, []), row]})

    def end(self, state: str, said: str = "") -> None:
        write(self.folder / END, json.dumps({"state": state, "said": said}))


def write(path: Path, text: str) -> None:
    """Whole or not at all: the reader may look, and this process may end, at any time."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]
