"""`make demo | python benchmarks/film.py docs/demo.svg`: a program's output as a moving picture of a terminal.

Lines appear in the order and, sped up, in the rhythm in which they came; the last frame stays. The picture is an SVG of
text, drawn by rich, that moves by itself where pages show it. The output is passed on. Lines that are wider than the
terminal are cut, and the folder that it is made in is left out of paths; so are words of waiting for processes to
start, which say how busy the machine was.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 105, 44
"""Characters and lines; of a longer output the first lines and the last ones are kept."""
FASTER = 20.0
LEAST_S, MOST_S = 0.12, 1.2
"""Between two lines, as they are shown."""


def read() -> list[tuple[float, str]]:
    """(seconds since the start, line) of standard input, which is passed on."""
    began, lines = monotonic(), []
    for line in sys.stdin:
        lines.append((monotonic() - began, line.rstrip("\n")))
        print(line, end="", flush=True)
    return lines


def paced(lines: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """When each is to be shown."""
    now, shown, before = 0.0, [], 0.0
    for came, line in lines:
        now += min(max((came - before) / FASTER, LEAST_S), MOST_S)
        shown.append((now, line))
        before = came
    return shown


def drawn(lines: list[tuple[float, str]], title: str) -> str:
    """The SVG."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for _, line in lines:
        text = Text(line.replace(f"{Path.cwd()}/", ""))
        text.highlight_regex(r"^(?:step|evaluation).*?(?=\|)", "bold cyan")
        text.highlight_regex(r"\d+\.\d%", "green")
        text.truncate(WIDTH)
        console.print(text)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)  # they are far away
    moves = "".join(
        f'text[clip-path$="line-{number})"] {{ animation: shown 0.01s {when:.2f}s both }}\n'
        for number, (when, _) in enumerate(lines)
    )
    return svg.replace(
        "</style>", f"@keyframes shown {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}\n{moves}</style>", 1
    )


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    lines = paced([(came, line) for came, line in read() if not line.startswith("W waiting for ")])
    if not lines:
        print("error: nothing came in; type: make demo | python benchmarks/film.py FILE.svg", file=sys.stderr)
        return 1
    kept = lines if len(lines) <= HEIGHT else [*lines[:2], (lines[1][0], "..."), *lines[-(HEIGHT - 3) :]]
    Path(sys.argv[1]).write_text(drawn(kept, "make demo"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
