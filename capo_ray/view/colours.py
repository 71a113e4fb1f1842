"""Responses as HTML: every token in the colour of its credit, every step in a row beside its critiques' flags.

Blue is credit, orange is blame; they stay apart for readers who see no red or no green, negative tokens are underlined
as well, and every text has a contrast of at least 4.5 to its ground, in light and in dark. Whatever a model wrote is
escaped here and nowhere else. Leaves out: where things stand on the page (see `page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

LEVELS = 5
"""Shades on either side of zero."""
LIGHT = {
    "ink": "#16181d", "ground": "#ffffff", "soft": "#f3f4f6", "line": "#c9ced6", "faint": "#5b6472",
    "more": ("#e6f0fa", "#cbe1f4", "#a3cbec", "#79b3e2", "#559fda"),
    "less": ("#fdf0e1", "#fcdfbd", "#fac88e", "#f5ad5c", "#ee9433"),
    "right": "#0b5f8a", "wrong": "#9a4a00",
}  # fmt: skip
DARK = {
    "ink": "#e8eaee", "ground": "#16181d", "soft": "#20242b", "line": "#434b57", "faint": "#a3adba",
    "more": ("#14283a", "#163a5a", "#184c7a", "#1a5d98", "#1d6cb0"),
    "less": ("#33230f", "#4f330e", "#6b420c", "#86500a", "#975807"),
    "right": "#6fbdf0", "wrong": "#f5ad5c",
}  # fmt: skip


def level(value: float, limit: float) -> int:
    """The shade of `value`, -LEVELS to LEVELS, when `limit` is the largest magnitude shown; 0 for 0 alone."""
    if not value or limit <= 0:
        return 0
    shade = min(LEVELS, max(1, round(LEVELS * abs(value) / limit)))
    return shade if value > 0 else -shade


def _name(shade: int) -> str:
    return f"p{shade}" if shade > 0 else f"n{-shade}" if shade < 0 else "z"


def token_spans(
    text: str,
    char_ends: Sequence[int],
    values: Sequence[float] | None,
    *,
    limit: float,
    first: int = 0,
    start: int = 0,
    label: str = "",
    breaks: bool = True,
) -> str:
    """HTML of the tokens `first`, `first` + 1, ... of a response, whose text begins at `start`.

    `char_ends` and `values` have an entry per token shown; None shows them without a colour. A token without text, such
    as the one that ends a response, is a sign. Without `breaks` the ends of lines are signs alone.
    """
    line_end = '<b class="nl">↵</b>' + ("\n" if breaks else "")
    made = []
    for number, end in enumerate(char_ends):
        piece, start = text[start:end], max(start, end)
        shown = escape(piece).replace("\n", line_end) if piece else '<b class="nl">∎</b>'
        if values is None:
            made.append(f"<i>{shown}</i>")
        else:
            value = values[number]
            title = f"token {first + number}: {label} {value:+.3f}".replace("  ", " ")
            made.append(f'<i class="{_name(level(value, limit))}" title="{escape(title)}">{shown}</i>')
    return "".join(made)


def legend(limit: float, what: str) -> str:
    """The colour scale, from the least to the most of what is shown."""
    shades = [*range(-LEVELS, 0), 0, *range(1, LEVELS + 1)]
    cells = "".join(f'<i class="{_name(shade)}">&nbsp;</i>' for shade in shades)
    return (
        f'<div class="legend"><span>{escape(what)}</span><span>{-limit:+.2f}</span><span class="scale">{cells}</span>'
        f"<span>{limit:+.2f}</span><span>blame is underlined</span></div>"
    )


_UNDERLINE = "text-decoration:underline dotted 1px;text-underline-offset:3px"


def _variables(palette: Mapping[str, str | Sequence[str]]) -> str:
    lines = []
    for name, value in palette.items():
        if isinstance(value, str):
            lines.append(f"--{name}:{value}")
        else:
            lines += [f"--{name}{shade}:{colour}" for shade, colour in enumerate(value, start=1)]
    return ";".join(lines)


def _shades() -> str:
    tokens = "".join(
        f".tok i.p{shade}{{background:var(--more{shade})}}.tok i.n{shade}{{background:var(--less{shade});{_UNDERLINE}}}"
        for shade in range(1, LEVELS + 1)
    )
    return tokens + tokens.replace(".tok ", ".scale ")


def stylesheet() -> str:
    """For every page."""
    scroll_bars = "html:has(body.body--dark){color-scheme:dark}"
    return f"body{{{_variables(LIGHT)}}}body.body--dark{{{_variables(DARK)}}}{scroll_bars}{_shades()}{_LAYOUT}"


def stylesheet_within(name: str) -> str:
    """For elements of the class `name` alone, on a page that is not ours: dark where Jupyter or VS Code is."""
    dark = f'[data-jp-theme-light="false"] .{name},.vscode-dark .{name}'
    own = f".{name}{{background:var(--ground);color:var(--ink);{_shades()}{_LAYOUT}}}"
    return f".{name}{{{_variables(LIGHT)}}}{dark}{{{_variables(DARK)}}}{own}"


_LAYOUT = """
body { background: var(--ground); color: var(--ink); }
.nicegui-content { padding: 8px; }
.tok i, .scale i { font-style: normal; border-radius: 2px; }
.tok i { box-shadow: inset -1px 0 var(--ground); -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.tok { font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.tok .nl { font-weight: normal; color: var(--faint); font-size: 11px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; font-size: 12px; color: var(--faint); }
.scale i { display: inline-block; width: 18px; height: 14px; border-radius: 0; text-decoration: none !important; }
.scale i.z { border-left: 1px solid var(--line); border-right: 1px solid var(--line); }
.resp .legend { margin-top: 4px; }
.steps { margin-top: 2px; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.step { display: grid; grid-template-columns: 3.2rem minmax(0, 1fr) auto; border-top: 1px solid var(--line); }
.step:first-child { border-top: 0; }
.step > .no { background: var(--soft); color: var(--faint); font-size: 12px; padding: 6px 8px; text-align: right; }
.step > .tok { padding: 4px 10px; }
.step.flagged { box-shadow: inset 4px 0 var(--wrong); }
.step.head { font-size: 12px; color: var(--faint); background: var(--soft); }
.step.head > div:not(.flags) { padding: 6px 10px; }
.flags { display: flex; align-items: stretch; background: var(--soft); border-left: 1px solid var(--line); }
.flags > * { width: 2.6rem; padding: 6px 0; text-align: center; font-size: 12px; color: var(--faint);
  text-decoration: none; border-left: 1px solid var(--line); }
.flags > *:first-child { border-left: 0; }
.flags a:hover { outline: 2px solid var(--right); outline-offset: -2px; }
.flags .on { color: var(--wrong); font-weight: 700; }
.flags[data-many] > * { width: 1.6rem; }
.flags > .wide { width: 5rem; }
.asked { font-size: 12px; color: var(--faint); margin: 2px 0; }
.ok { color: var(--right); } .bad { color: var(--wrong); } .faint { color: var(--faint); }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 10px; padding: 0 8px; font-size: 12px;
  line-height: 18px; white-space: nowrap; }
.resp { display: block; border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; color: inherit;
  text-decoration: none; }
a.resp:hover { border-color: var(--right); }
.resp .facts { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; font-size: 13px; }
a.resp .tok { max-height: 5.4em; overflow: hidden; margin-top: 4px; }
.tok .cut { border-left: 3px solid var(--faint); border-radius: 2px; margin: 0 6px 0 5px; }
.box { border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; background: var(--soft); }
.boxes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 8px; }
summary { display: list-item; cursor: pointer; }
.box h3, .title { font-size: 12px; line-height: 18px; color: var(--faint); font-weight: 600; margin: 0 0 2px; }
.plain { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; line-height: 1.5; }
details.critique { border: 1px solid var(--line); border-radius: 6px; padding: 6px 12px; margin-top: 6px; }
summary { font-size: 13px; }
details.critique pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.55 ui-monospace, "DejaVu Sans Mono",
  monospace; margin: 6px 0 2px; }
details.critique .at { scroll-margin-top: 110px; }
table.plainly { border-collapse: collapse; width: 100%; font-size: 13px; }
table.plainly th { text-align: left; color: var(--faint); font-weight: 600; }
table.plainly th, table.plainly td { padding: 5px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
table.plainly td.n, table.plainly th.n { text-align: right; font-variant-numeric: tabular-nums; }
table.plainly th:last-child { width: 60%; }
table.plainly td.links { min-width: 9rem; line-height: 1.7; }
table.plainly a, a.link { color: var(--right); }
.scroll { overflow-x: auto; }
@media (max-width: 700px) {
  .step { grid-template-columns: 2.2rem minmax(0, 1fr); }
  .step > .flags { grid-column: 1 / -1; border-left: 0; border-top: 1px dashed var(--line); overflow-x: auto; }
  .step.head > .flags { border-top: 0; }
}
"""
