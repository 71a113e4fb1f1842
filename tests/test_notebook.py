"""`capo_ray.notebook`: the README's lines, and what a notebook and a terminal show of them."""

from __future__ import annotations

import ast
import re
from html import unescape
from pathlib import Path

import pytest

from capo_ray.credit.group import Scheme
from capo_ray.notebook import Shown, score

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "capo_ray" / "assets" / "tiny_policy"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def the_readmes(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What the last line of its example gives, as a notebook evaluates it."""
    (block,) = re.findall(r"^```python\n(from capo_ray\.notebook .*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert block.count("\n") == 5, "five lines, one of them blank"
    monkeypatch.chdir(ROOT)
    *before, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    names: dict[str, object] = {}
    exec(compile(ast.Module(body=before, type_ignores=[]), "README.md", "exec"), names)
    shown = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
    assert isinstance(shown, Shown)
    return shown


def test_every_token_of_the_readmes_example_has_the_colour_of_its_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = the_readmes(monkeypatch)
    html = shown._repr_html_()
    advantages = [value for row in shown.score.advantages if row for value in row]
    tokens = re.findall(r'<i class="([pnz])\d?" title="token \d+: advantage ([+-][\d.]+)">(.*?)</i>', html, re.S)
    assert [float(value) for _, value, _ in tokens] == [pytest.approx(value, abs=1e-3) for value in advantages]
    assert all((kind == "p") == (float(value) > 0) for kind, value, _ in tokens)
    text = unescape("".join(re.sub("<b.*?</b>", "", piece) for _, _, piece in tokens))
    assert re.sub(r"\s", "", text) == "3+4=7.Soitis7.3+4=8.Soitis8."
    assert html.count('<div class="step flagged">') == 1 and "1/1 wrong" in html
    assert "policy -1" not in html and "href" not in html


def test_its_style_touches_nothing_else_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    (style,) = re.findall("<style>(.*)</style>", the_readmes(monkeypatch)._repr_html_(), re.S)
    depth, outer, selectors = 0, "", []
    for sign in style:
        if sign == "{" and depth == 0:
            selectors += outer.split(",")
        outer = "" if sign in "{}" else outer + sign
        depth += {"{": 1, "}": -1}.get(sign, 0)
    assert depth == 0
    assert all(".capo-credit" in selector for selector in selectors), selectors


def test_a_terminal_gets_a_line_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = the_readmes(monkeypatch)
    first, *_, head, wrong, _ = str(shown).splitlines()
    assert first.startswith("response 0: right answer") and head.startswith("response 1: wrong answer")
    paid, flags, sign, _, text = wrong.split(maxsplit=4)
    assert (flags, sign, text) == ("1/1", "✗", "3 + 4 = 8.")
    (lowest,) = {min(row) for row in shown.score.advantages[1:] if row}
    assert float(paid) == pytest.approx(lowest, abs=1e-3)
    assert repr(shown) == str(shown)


def test_what_no_critic_could_judge_is_shown_as_dropped() -> None:
    """Its critique has no list: unreadable, so it is unjudged and takes no part."""
    responses = [
        {"text": "a\n\nb", "outcome": 1, "critiques": [said]} for said in ("?", "<incorrect_steps>1</incorrect_steps>")
    ]
    shown = score(responses, TOKENIZER, scheme=Scheme(vote="majority"))
    assert "right answer, dropped from its group" in str(shown)
    assert "dropped: no advantage" in shown._repr_html_()


def test_text_is_escaped() -> None:
    html = score([{"text": "<script>", "outcome": 0}], TOKENIZER, scheme=Scheme(advantage="grpo"))._repr_html_()
    assert "<script" not in html


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([], "there must be at least one response"),
        ([{"text": "a", "outcome": 1}, {"text": "b"}], "response 1: outcome must be 0 or 1, got null"),
        ([{"text": "a", "outcome": {1, 2}}], "response 0: outcome must be 0 or 1"),
    ],
)
def test_a_response_that_cannot_be_used_is_named(responses: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(responses, TOKENIZER)
