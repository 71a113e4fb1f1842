"""Where a model thinks, in the spellings of many models."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.credit.critique import escape
from capo_ray.credit.reply import parse
from capo_ray.credit.thoughts import is_mark, open_mark, said, thoughts

PAIRS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|think_start|>", "<|think_end|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary", "<|channel|>final"),
    ("analysisWe see: ", "assistantfinal"),  # gpt-oss behind a server that drops special tokens
]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_what_is_said_stands_outside_of_thoughts(opening: str, closing: str) -> None:
    assert said(f"{opening}draft{closing}The answer") == ("The answer", False)
    assert said(f"{opening}draft, cut o") == ("", True)
    draft = "<incorrect_steps>1</incorrect_steps>"
    assert parse(f"{opening}{draft}{closing}Yes", 3).outcome == "unreadable"
    assert parse(f"{opening}{draft}", 3).outcome == "unreadable"
    assert parse(f"{opening}{draft}", 3, truncated=True).outcome == "truncated"
    if closing != "<|end|>":  # other models end a turn with it
        assert said(f"draft{closing}The answer") == ("The answer", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", False)),
        ("no thought", ("no thought", False)),
        ("a <think>b</think> c <think>d</think> e", ("a  c  e", False)),
        ("a <think>b</think> c </think> e", (" e", False)),  # the second was opened somewhere before
        ("a <think>b", ("a ", True)),
        ("<think>a</thought>b</think>c", ("c", False)),
        ("<think>a[/THINK]b", ("", True)),  # of another family
        ("<think><think>a</think>b", ("b", False)),
        ("I think <br> so<|end|>", ("I think <br> so<|end|>", False)),
        ("analysis of it: assistant final", ("analysis of it: assistant final", False)),
    ],
)
def test_said(text: str, expected: tuple[str, bool]) -> None:
    assert said(text) == expected


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("[/INST][THINK]", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("What does <think> mean?<|im_end|><|im_start|>assistant\n", ""),
        ("<think>\n\n</think>\n\n", ""),
        ("", ""),
    ],
)
def test_a_thought_that_the_prompt_opens(prompt: str, opened: str) -> None:
    """A response that is cut off in it says nothing, though no mark stands in its text."""
    assert open_mark("x" * 200 + prompt) == opened
    assert said(opened + "So 6? Let me") == (("", True) if opened else ("So 6? Let me", False))


def test_which_special_tokens_belong_to_the_text() -> None:
    marks = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|START_THINKING|>")
    others = ("</s>", "<|im_end|>", "<|end|>", "<|eot_id|>", "[INST]", "<|return|>", "<pad>", "<|start|>")
    assert [is_mark(token) for token in marks + others] == [True] * len(marks) + [False] * len(others)


PIECES = [mark for pair in PAIRS for mark in pair] + ["a", " ", "\n", "<", "|", "think", "[", "</"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_spans_are_ascending_and_apart(text: str) -> None:
    spans, unfinished = thoughts(text)
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert not unfinished or spans[-1][1] == len(text)
    spoken = said(text).text
    assert len(spoken) == len(text) - sum(end - start for start, end in spans)


@given(st.lists(st.sampled_from([piece for piece in PIECES if "analysisWe" not in piece]), max_size=12).map("".join))
def test_no_mark_is_left_in_what_a_critic_is_shown(text: str) -> None:
    """A critic that quotes a response cannot seem to think; gpt-oss's words without their tokens are plain words."""
    shown = escape(text.replace("assistantfinal", ""))
    assert said(shown) == (shown, False)


def test_takes_linear_time() -> None:
    start = time.monotonic()
    for text in ("<think>" * 100_000, "</think>" * 100_000, "<|channel|> " * 50_000, "[think" * 100_000, " " * 10**6):
        said(text)
    assert time.monotonic() - start < 20
