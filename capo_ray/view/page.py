"""The pages, built with NiceGUI: curves, responses, one response, one problem over policy versions, flagged steps.

What a page shows stands in its address, so that it can be reloaded, kept and sent. A page of a live run renews itself
where nothing moves under the reader's eyes: curves and counts are replaced in place, new responses wait for a click.
Leaves out: reading the run (see `viewer`), filters and what turns pages (see `controls`) and the HTML of responses (see
`markup`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args
from urllib.parse import urlencode

from nicegui import run, ui
from starlette.requests import Request

from capo_ray.view import markup
from capo_ray.view.choose import PAGE, Draw, Filter, draws
from capo_ray.view.colours import legend, stylesheet
from capo_ray.view.controls import credit_toggle, filters, pager
from capo_ray.view.curves import chart, charts
from capo_ray.view.markup import Credit
from capo_ray.view.records import Entry, Response
from capo_ray.view.viewer import Viewer

TABS = {"/": "Curves", "/responses": "Responses", "/flagged": "Flagged"}
REFRESH = 2.0
"""Seconds between two looks at whether a page is out of date."""
PATIENCE = 60.0
"""Seconds that a browser may take to connect, or to come back, before its page is forgotten."""


def html(text: str) -> ui.html:
    """Text that `markup` has made: what models wrote is escaped in it."""
    return ui.html(text, sanitize=False).classes("w-full")


@contextmanager
def frame(viewer: Viewer, here: str, *, dark: bool | None) -> Iterator[None]:
    """Header and state of the run around a page."""
    viewer.opened()
    ui.add_css(stylesheet())
    mode = ui.dark_mode(dark)
    with (
        ui.header()
        .classes("items-center gap-x-4 gap-y-0 py-1 px-3")
        .style("background: var(--soft); color: var(--ink); border-bottom: 1px solid var(--line)")
    ):
        ui.label(viewer.run_dir.name).classes("text-base font-bold").tooltip(str(viewer.run_dir))
        for path, name in TABS.items():
            link = ui.link(name, path).style("color: var(--ink); text-decoration: none; padding: 4px 2px")
            if path == here:
                link.style("border-bottom: 2px solid var(--right); font-weight: 600").props('aria-current="page"')
        ui.space()
        status = ui.label().classes("text-xs").style("color: var(--faint)")
        theme = ui.button(icon="contrast").props("flat dense round size=sm color=grey aria-label='light or dark'")
        theme.on_click(lambda: mode.set_value(not mode.value)).tooltip("light or dark")
    problem = ui.label().classes("bad w-full px-3")

    def renew() -> None:
        status.text = f"{viewer.status()} · {viewer.reading()}"
        problem.text = viewer.problem
        problem.set_visibility(bool(viewer.problem))

    renew()
    ui.timer(REFRESH, renew)
    with ui.column().classes("w-full max-w-screen-2xl mx-auto gap-3 p-1 sm:p-3"):
        yield


def when_changed(viewer: Viewer, act: Callable[[], object]) -> None:
    """Call `act` whenever the run has more to show than at the last call."""
    seen = [(viewer.state, len(viewer.metrics.lines))]

    def look() -> None:
        now = (viewer.state, len(viewer.metrics.lines))
        if now != seen[0]:
            seen[0] = now
            act()

    ui.timer(REFRESH, look)


def curves_page(viewer: Viewer) -> None:
    drawn: dict[str, ui.echart] = {}
    said = "By training step. Lines: what it trained on. Diamonds: the policy after it on held-out problems."
    ui.label(said).classes("text-xs faint")
    grid = ui.element("div").classes("w-full grid grid-cols-1 md:grid-cols-2 xl:grid-cols-3 gap-3")
    waiting = html('<div class="faint">No training step is finished yet. This page fills by itself.</div>')

    def show(title: str, options: dict) -> None:
        if title not in drawn:
            with grid:
                drawn[title] = (
                    ui.echart(options, renderer="svg")
                    .classes("w-full h-64")
                    .style("border: 1px solid var(--line); border-radius: 6px; padding: 6px")
                )
        elif drawn[title].options != options:
            drawn[title].options.clear()
            drawn[title].options.update(options)
            drawn[title].update()

    def renew() -> None:
        for title, options in charts(viewer.metrics).items():
            show(title, options)
        waiting.set_visibility(not drawn)
        chosen.set_options(viewer.metrics.names())
        if chosen.value:
            own(chosen.value)

    def own(name: str) -> None:
        options = chart("Any other", [(name, name)], viewer.metrics)
        show("own", options)

    chosen = ui.select([], label="Any other metric", with_input=True, on_change=lambda e: own(e.value))
    chosen.classes("w-80 max-w-full").props("dense outlined")
    renew()
    when_changed(viewer, renew)


async def loaded(viewer: Viewer, entries: list[Entry]) -> list[Response]:
    """Without those of files that cannot be read: what is wrong with these stands above every page."""
    return await run.io_bound(viewer.responses, entries) or []


async def list_page(viewer: Viewer, query: dict[str, str]) -> None:
    """Filters, and the responses they leave, a page at a time."""
    state = {"filter": Filter.of_query(query), "page": max(1, _number(query.get("page"), 1)), "seen": viewer.state}
    credit: list[Credit] = ["reward" if query.get("credit") == "reward" else "advantage"]

    def go(**changes: object) -> None:
        state.update(changes)
        state["seen"] = viewer.state
        newer.set_visibility(False)
        shown = state["filter"].query()  # type: ignore[attr-defined]
        rest = {"page": state["page"]} if state["page"] != 1 else {}
        rest |= {"credit": credit[0]} if credit[0] != "advantage" else {}
        parts = "&".join(filter(None, [shown, urlencode(rest)]))
        ui.navigate.history.replace(f"/responses?{parts}" if parts else "/responses")
        rows.refresh()

    def narrow(name: str, value: str | None) -> None:
        go(filter=replace(state["filter"], **{name: (value or "").strip()}), page=1)  # type: ignore[type-var]

    filters(state["filter"], narrow)  # type: ignore[arg-type]

    def switch(value: Credit) -> None:
        credit[0] = value
        go()

    @ui.refreshable
    async def rows() -> None:
        found = await viewer.choose(state["filter"])  # type: ignore[arg-type]
        pages = max(1, -(-len(found) // PAGE))
        page = min(int(str(state["page"])), pages)
        with ui.row().classes("w-full items-center gap-3"):
            ui.label(f"{len(found):,} of {len(viewer.index.entries):,} responses").classes("font-bold")
            credit_toggle(credit[0], switch)
            pager(page, pages, lambda number: go(page=number))
        for said in state["filter"].meaningless():  # type: ignore[attr-defined]
            ui.label(said).classes("bad")
        shown = await loaded(viewer, found[(page - 1) * PAGE : page * PAGE])
        limit = markup.limit_of(shown, credit[0])
        if shown:
            html(legend(limit, f"{credit[0]} per token; a bar is the border of a reasoning step"))
        html("".join(f'<div style="margin-bottom:8px">{markup.list_row(r, credit[0], limit)}</div>' for r in shown))
        if not found:
            html('<div class="faint">No response is like that. Widen a filter.</div>')
        elif len(shown) > 5:
            pager(page, pages, lambda number: go(page=number))

    newer: ui.button = ui.button("There is more: show it", on_click=lambda: go())
    newer.props("no-caps color=blue-grey-7").style("position: fixed; bottom: 16px; right: 24px; z-index: 10")
    newer.set_visibility(False)
    await rows()
    when_changed(viewer, lambda: newer.set_visibility(viewer.state != state["seen"]))


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default


async def response_page(viewer: Viewer, query: dict[str, str]) -> None:
    """One response with everything that is known of it."""
    key = (_number(query.get("step"), -1), query.get("prompt", ""), _number(query.get("index"), -1))
    entry = await run.io_bound(viewer.index.find, *key)
    if entry is None:
        missing = viewer.index.num_files - viewer.index.num_read
        ui.label(
            f"There is no response {key[2]} to {key[1]!r} in training step {key[0]}"
            + (f" in what has been read; {missing} files are to be read: try again." if missing else " of this run.")
        )
        return
    if not (read := await loaded(viewer, [entry])):
        ui.label(f"Response {key[2]} to {key[1]!r} in training step {key[0]} cannot be read.")
        return
    (response,) = read
    group = [other for other in viewer.index.of_file(entry.file) if other.prompt_id == entry.prompt_id]
    with ui.row().classes("w-full items-center gap-2"):
        ui.label(f"training step {entry.step}").classes("font-bold")
        ui.label(f"{entry.prompt_id} / {entry.index}")
    html(f'<div class="resp" style="border:0;padding:0"><div class="facts">{markup.facts(entry)}</div></div>')
    with ui.row().classes("w-full items-center gap-x-4 gap-y-1 text-sm"):
        at = group.index(entry)
        for name, other in (("← response before", at - 1), ("next response →", at + 1)):
            if 0 <= other < len(group):
                html(f'<a class="link" href="{markup.address(group[other])}">{name}</a>').classes(remove="w-full")
        ui.link("compare over policy versions", "/problem?" + urlencode({"id": entry.problem})).classes("link")
    html(f'<div class="boxes">{markup.problem_box(response)}{markup.verdict_box(response)}</div>')
    limits = {name: markup.limit_of(await loaded(viewer, group), name) for name in get_args(Credit)}

    def switch(credit: Credit) -> None:
        grid.set_content(markup.steps_grid(response, credit, limits[credit]))

    credit_toggle("advantage", switch)
    grid = html(markup.steps_grid(response, "advantage", limits["advantage"]))
    if response.critiques:
        html('<div class="title">Critiques: open one for its text</div>' + markup.critiques(response))


async def problem_page(viewer: Viewer, query: dict[str, str]) -> None:
    """One problem each time that it was sampled, and two of its responses side by side."""
    problem = query.get("id", "")
    found = draws(viewer.index.entries, problem)
    if not found:
        ui.label(f"No response to {problem!r} has been read from this run.")
        return
    for first in await loaded(viewer, [found[0].entries[0]]):
        html(f'<div class="boxes">{markup.problem_box(first)}</div>')
    versions = {draw.version for draw in found}
    said = "by one policy version: there is nothing to compare yet" if len(versions) == 1 else "oldest first"
    ui.label(f"{problem} was sampled {len(found)} time{'s' if len(found) > 1 else ''}, {said}.").classes("text-sm")
    html(markup.draws_table(found))
    ui.label("A policy version is the number of training steps that made it.").classes("text-xs faint")
    choices = {n: f"training step {entry.step}, response {entry.index}" for n, entry in _flat(found)}
    entries = dict(_flat(found))
    chosen = [0, len(entries) - len(found[-1].entries) if len(found) > 1 else min(1, len(entries) - 1)]

    @ui.refreshable
    async def both() -> None:
        responses = await loaded(viewer, [entries[number] for number in chosen])
        limit = markup.limit_of(responses, "advantage")
        with ui.element("div").classes("w-full grid grid-cols-1 lg:grid-cols-2 gap-3"):
            for response in responses:
                html(
                    f'<div class="resp"><div class="facts">{markup.facts(response.entry)}</div>'
                    f"{markup.steps_grid(response, 'advantage', limit, with_flags=False)}</div>"
                )

    def pick(side: int, number: int) -> None:
        chosen[side] = number
        both.refresh()

    with ui.element("div").classes("w-full grid grid-cols-1 lg:grid-cols-2 gap-3"):
        for side, label in enumerate(("Left", "Right")):
            select = ui.select(choices, label=label, value=chosen[side]).props("dense outlined")
            select.on_value_change(lambda e, side=side: pick(side, e.value))
    await both()


def _flat(found: list[Draw]) -> list[tuple[int, Entry]]:
    return list(enumerate(entry for draw in found for entry in draw.entries))


async def flagged_page(viewer: Viewer) -> None:
    """The steps most often flagged; counted again on reload."""
    found = await viewer.most_flagged()
    ui.label("Reasoning steps with the same text, those that the vote flags most often first.").classes("text-sm")
    html(
        markup.flagged_table(found)
        if found
        else '<div class="faint">No critique has flagged a reasoning step yet.</div>'
    )


def add_pages(viewer: Viewer, *, dark: bool | None) -> None:
    """`dark` None: as the reader's system has it."""

    async def filled(page: Callable[[], Awaitable[None]]) -> None:
        """The frame is there at once; what takes reading comes when the browser has it."""
        with ui.column().classes("w-full gap-3"):
            reading = ui.label("Reading ...").classes("faint")
            await ui.context.client.connected(timeout=PATIENCE)
            viewer.opened()
            await page()
            reading.delete()

    @ui.page("/")
    async def curves() -> None:
        with frame(viewer, "/", dark=dark):
            curves_page(viewer)

    @ui.page("/responses")
    async def responses(request: Request) -> None:
        with frame(viewer, "/responses", dark=dark):
            await filled(lambda: list_page(viewer, dict(request.query_params)))

    @ui.page("/response")
    async def response(request: Request) -> None:
        with frame(viewer, "/response", dark=dark):
            await filled(lambda: response_page(viewer, dict(request.query_params)))

    @ui.page("/problem")
    async def problem(request: Request) -> None:
        with frame(viewer, "/problem", dark=dark):
            await filled(lambda: problem_page(viewer, dict(request.query_params)))

    @ui.page("/flagged")
    async def flagged() -> None:
        with frame(viewer, "/flagged", dark=dark):
            await filled(lambda: flagged_page(viewer))
