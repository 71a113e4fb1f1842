"""What a reader sees: every token once, escaped, in a colour that can be told and read."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from view_run import EVIL, SAID, write_run

from capo_ray.view import markup
from capo_ray.view.colours import DARK, LEVELS, LIGHT, legend, level, stylesheet, token_spans
from capo_ray.view.index import Index
from capo_ray.view.records import Response


def shown(run_dir: Path, problem: str, index: int) -> Response:
    made = Index(write_run(run_dir, steps=1))
    made.refresh()
    entry = made.find(1, f"{problem}@0", index)
    assert entry
    return made.source.response(entry)


def plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).replace("↵", "").replace("∎", "")


@given(st.lists(st.text(alphabet="a<&\"'\n é", max_size=4), max_size=8))
def test_tokens_are_the_text_and_nothing_of_it_is_markup(pieces: list[str]) -> None:
    text, ends = "".join(pieces), [len("".join(pieces[: n + 1])) for n in range(len(pieces))]
    html = token_spans(text, ends, [0.5] * len(ends), limit=1, label="advantage")
    assert plain(html) == text and html.count("<i class=") == len(pieces)
    assert set(re.findall(r"<(/?\w+)", html)) <= {"i", "/i", "b", "/b"}


def test_a_token_tells_its_number_and_its_credit() -> None:
    html = token_spans("ab", [1, 2], [2.0, -0.5], limit=2, first=7, label="token reward")
    assert 'class="p5" title="token 7: token reward +2.000">a<' in html
    assert 'class="n1" title="token 8: token reward -0.500">b<' in html


def test_shades() -> None:
    assert [level(value, 2) for value in (2, -2, 0.01, -0.01, 0, 1.2)] == [LEVELS, -LEVELS, 1, -1, 0, 3]
    assert level(1, 0) == 0
    assert "-2.00" in legend(2, "advantage") and "+2.00" in legend(2, "advantage")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_colour(palette: dict) -> None:
    """WCAG 2.1, level AA."""
    assert min(contrast(palette["ink"], colour) for colour in (*palette["more"], *palette["less"])) >= 4.5
    for ink in ("ink", "faint", "right", "wrong"):
        assert min(contrast(palette[ink], palette[ground]) for ground in ("ground", "soft")) >= 4.5, ink


# Machado, Oliveira and Fernandes 2009, severity 1: what readers without red, green or blue cones see of linear RGB.
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_credit_and_blame_are_told_apart_by_the_colour_blind(palette: dict, kind: str) -> None:
    def seen(colour: str) -> list[float]:
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return [sum(weight * part for weight, part in zip(row, rgb, strict=True)) for row in BLIND[kind]]

    for shade in range(2, LEVELS):
        more, less = seen(palette["more"][shade]), seen(palette["less"][shade])
        distance = sum((a - b) ** 2 for a, b in zip(more, less, strict=True)) ** 0.5
        assert distance > 55, (shade, distance)


def test_every_shade_has_a_rule() -> None:
    css = stylesheet()
    for shade in range(1, LEVELS + 1):
        assert f".tok i.p{shade}" in css and f".tok i.n{shade}" in css and f"--less{shade}:" in css


def test_the_whole_response_stands_in_its_steps(tmp_path: Path) -> None:
    response = shown(tmp_path, "two", 1)
    html = markup.steps_grid(response, "advantage", 1.0)
    steps = [plain(part) for part in re.findall(r'<div class="tok">(.*?)</div>', html, re.S)]
    assert steps == [response.text[start:end].rstrip("\n") for start, end in response.chars]
    assert html.count('<div class="step flagged">') == 1 and html.count('title="token ') == len(response.char_ends)


def test_flags_votes_and_truth_stand_beside_each_step(tmp_path: Path) -> None:
    html = markup.steps_grid(shown(tmp_path, "two", 1), "reward", 2.0)
    (row,) = re.findall(r'<div class="step flagged">.*?(?=<div class="step|$)', html, re.S)
    assert re.findall(r">([^<]+)</(?:a|span)>", row) == ["✗", "✗", "?", "2/2 wrong", "wrong"]
    assert 'href="#critique-2" title="critique 2 unreadable"' in row


def test_the_verifier_says_what_it_read_and_why_that_is_wrong(tmp_path: Path) -> None:
    html = markup.verdict_box(shown(tmp_path, "two", 2))
    assert f"The answer is wrong: {SAID} is not 4read from the response: {SAID}" in plain(html)
    assert SAID not in html
    assert plain(markup.verdict_box(shown(tmp_path, "two", 0))).startswith("VerifierThe answer is right.Vote")


def test_a_dropped_response_says_so(tmp_path: Path) -> None:
    response = shown(tmp_path, "two", 3)
    assert response.advantages is None
    assert "dropped: no advantage" in markup.steps_grid(response, "advantage", 1.0)
    assert "nothing is learnt from it" in markup.verdict_box(response)
    assert "unjudged." in markup.verdict_box(response)


def test_what_a_model_wrote_is_never_markup(tmp_path: Path) -> None:
    response = shown(tmp_path, "evil", 1)
    listed = markup.list_row(replace(response, question=EVIL), "advantage", 1.0)
    assert EVIL in plain(listed)
    everything = [
        listed,
        markup.steps_grid(response, "advantage", 1.0),
        markup.critiques(response),
        markup.problem_box(response),
    ]
    assert all("<script" not in html and "<img" not in html for html in everything)
    assert EVIL in plain(everything[1]) and EVIL in unescape(everything[2])


def test_a_list_shows_the_beginning_of_the_question(tmp_path: Path) -> None:
    response = shown(tmp_path, "two", 0)
    assert f'<div class="asked">{response.question}</div>' in markup.list_row(response, "advantage", 1.0)
    long = replace(response, question="What " * 100)
    assert f'<div class="asked">{"What " * 32} …</div>' in markup.list_row(long, "advantage", 1.0)


def test_a_long_response_is_shown_from_its_first_flagged_step(tmp_path: Path) -> None:
    short = shown(tmp_path, "two", 1)
    padding = "x" * 1000
    long = replace(
        short,
        text=padding + short.text,
        char_ends=(500, 1000, *(end + 1000 for end in short.char_ends)),
        rewards=(0.0, 0.0, *short.rewards),
        advantages=(0.0, 0.0, *(short.advantages or ())),
        chars=((0, 1000 + short.chars[0][1]), *((a + 1000, b + 1000) for a, b in short.chars[1:])),
        tokens=((0, 2 + short.tokens[0][1]), *((a + 2, b + 2) for a, b in short.tokens[1:])),
    )
    (text,) = re.findall(r'<div class="tok">(.*?)</div>', markup.list_row(long, "advantage", 1.0), re.S)
    assert plain(text) == "… is 5so 4"
