"""What a reader of the pages presses and fills in: filters, the kind of credit, what turns pages.

Each says what was done to a function that it is given. Leaves out what is shown then (see `page`) and which responses a
filter leaves (see `choose`).
"""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from capo_ray.view.choose import Filter
from capo_ray.view.markup import Credit

SELECTS = {
    "answer": ("Answer", {"": "any", "correct": "right", "wrong": "wrong", "unverifiable": "unverifiable"}),
    "verdict": ("Vote", {"": "any", "flagged": "flagged", "clean": "nothing flagged", "unjudged": "unjudged"}),
    "truth": ("Against the truth", {"": "any", "missed": "a mistake missed", "alarm": "a false alarm"}),
    "disagree": ("Critiques", {"": "any", "yes": "differ"}),
    "unreadable": ("Failed critiques", {"": "any", "yes": "at least one"}),
}
INPUTS = {"tokens": "Tokens, FROM-TO", "steps": "Training steps", "problem": "Problem", "text": "Text or question"}


def filters(filter_: Filter, narrow: Callable[[str, str | None], None]) -> None:
    with ui.element("div").classes("w-full grid grid-cols-2 md:grid-cols-3 xl:grid-cols-9 gap-2"):
        for name, (label, options) in SELECTS.items():
            value = getattr(filter_, name)
            select = ui.select(options, label=label, value=value if value in options else "")
            select.props("dense outlined options-dense").on_value_change(lambda e, name=name: narrow(name, e.value))
        for name, label in INPUTS.items():
            box = ui.input(label, value=getattr(filter_, name)).props("dense outlined clearable debounce=500")
            box.on_value_change(lambda e, name=name: narrow(name, e.value))


def credit_toggle(value: Credit, switch: Callable[[Credit], None]) -> None:
    toggle = ui.toggle({"advantage": "advantage", "reward": "token reward"}, value=value)
    toggle.props("dense no-caps unelevated toggle-color=blue-grey-7").on_value_change(lambda e: switch(e.value))


def pager(page: int, pages: int, turn: Callable[[int], None]) -> None:
    with ui.row().classes("items-center gap-1"):
        for icon, target, name in (
            ("first_page", 1, "first page"),
            ("chevron_left", page - 1, "page before"),
            ("chevron_right", page + 1, "next page"),
            ("last_page", pages, "last page"),
        ):
            button = ui.button(icon=icon, on_click=lambda target=target: turn(target))
            button.props(f"flat dense round size=sm color=grey aria-label='{name}'")
            button.set_enabled(1 <= target <= pages and target != page)
            if name == "page before":
                ui.label(f"page {page} of {pages}").classes("text-sm")
