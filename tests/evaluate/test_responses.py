"""Responses are asked for, graded and kept; what is kept is not asked again; the figures are those of the responses."""

import asyncio
import gzip
import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from evaluate.scripted import Scripted, encode

from capo_ray.credit.reply import parse
from capo_ray.critic_bench.replies import Reply
from capo_ray.critics.labelled import Item
from capo_ray.data.problem import DataError
from capo_ray.evaluate.grading import grader, same_answer, votes
from capo_ray.evaluate.report import accuracies, figures, name_of, powers, process_accuracies, table
from capo_ray.evaluate.response import Mode, Response, kept, read_responses
from capo_ray.evaluate.responses import ask, tasks_of
from capo_ray.evaluate.suites import Question, find_suite, questions
from capo_ray.tasks.verify import Verifier
from capo_ray.types import Sampling

SAMPLING: dict[Mode, Sampling] = {"greedy": Sampling(max_tokens=8, temperature=0), "sampled": Sampling(max_tokens=8)}


def evaluate(path: Path, suite: str, engine: Scripted, *, greedy: int, sampled: int, overrides: tuple[str, ...] = ()):
    """Every response of `engine` to the suite, and per benchmark its accuracies."""
    found = find_suite(suite, overrides)
    asked: list[tuple[str, Question]] = [(n, q) for n, b in found.items() for q in questions(n, b, seed=0, count=100)]

    async def work() -> dict[str, dict[str, list[float]]]:
        verifier = Verifier(processes=2, timeout_s=20)
        try:
            tasks = tasks_of(asked, encode, {"greedy": greedy, "sampled": sampled}, kept(path))
            await ask(tasks, engine, SAMPLING, grader(found, verifier), path, seed=0, at_once=16)
            responses = read_responses(path)
            return {
                name: await accuracies(
                    [one for one in responses if one.benchmark == name],
                    same_answer(verifier) if benchmark.answer == "math" else None,
                )
                for name, benchmark in found.items()
            }
        finally:
            await verifier.close()

    return asyncio.run(work())


def test_real_responses_are_graded_as_recorded(test_data: Path, tmp_path: Path) -> None:
    """100 problems, eight real responses each: the recorded grades, and majorities of the recorded answers. One problem
    differs, whose 10{,}000 they took for wrong."""
    with gzip.open(test_data / "llm_outputs" / "qwen25math_math_cot_100x8.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    problems = tmp_path / "real.jsonl"
    problems.write_text("".join(json.dumps({"question": r["question"], "answer": r["gt"]}) + "\n" for r in records))
    said = {record["question"]: record["response"] for record in records}
    assert len(said) == 100
    engine = Scripted(lambda question, sampling, index: said[question][index])
    values = evaluate(tmp_path / "responses.jsonl", str(problems), engine, greedy=0, sampled=8)["real"]

    recorded = {record["question"]: record["score"] for record in records}
    found = read_responses(tmp_path / "responses.jsonl")
    assert len(found) == 800
    assert sum((one.answer == "correct") == recorded[one.question][one.index] for one in found) >= 795
    assert fmean(values["avg@8"]) == pytest.approx(fmean(map(fmean, recorded.values())), abs=0.005)
    assert fmean(values["pass@8"]) == pytest.approx(fmean(map(any, recorded.values())), abs=0.011)
    majority = [
        record["score"][record["pred"].index(Counter(record["pred"]).most_common(1)[0][0])] for record in records
    ]
    assert fmean(values["maj@8"]) == pytest.approx(fmean(majority), abs=0.011)
    assert list(values) == ["avg@8", "pass@2", "pass@4", "pass@8", "maj@8"]


def test_what_is_kept_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    engine = Scripted(lambda question, sampling, index: f"\\boxed{{{index}}}")
    whole = evaluate(path, "arithmetic", engine, greedy=1, sampled=2)
    assert Counter(temperature for _, temperature, _ in engine.asked) == {0: 100, 1: 200}
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:250]) + lines[250][:-9])
    engine.asked.clear()
    assert evaluate(path, "arithmetic", engine, greedy=1, sampled=2) == whole
    assert len(engine.asked) == 50
    assert len({response.key for response in read_responses(path)}) == 300


def test_the_mean_of_greedy_runs(tmp_path: Path) -> None:
    """Of three runs the first is right."""
    (tmp_path / "x.jsonl").write_text('{"question": "?", "answer": "7"}\n')
    engine = Scripted(lambda question, sampling, index: f"\\boxed{{{7 + index}}}")
    values = evaluate(tmp_path / "r", str(tmp_path / "x.jsonl"), engine, greedy=3, sampled=0)
    assert values == {"x": {"greedy": [pytest.approx(1 / 3)]}}


def response(answer: str, extracted: str | None, index: int = 0, **more: object) -> Response:
    made = {"benchmark": "b", "id": "1", "mode": "sampled", "index": index, "question": "?", "gold": "2"}
    made |= {"response": f"\\boxed{{{extracted}}}", "finish": "stop", "num_tokens": 3, "reason": None}
    return Response(**{**made, "answer": answer, "extracted": extracted, **more})  # type: ignore[arg-type]


def test_equal_answers_vote_together() -> None:
    """0.5, 1/2 and \\frac12 are one answer; what cannot be verified, or is not there, has no vote."""
    given = [("wrong", "0.5"), ("wrong", "\\frac{1}{2}"), ("correct", "2"), ("wrong", "3"), ("wrong", "\\frac12")]
    samples = [response(*one, index=n) for n, one in enumerate(given)]
    samples += [response("unverifiable", "9^{9^9}", 5), response("wrong", None, 6), response("correct", "2.0", 7)]
    compared: list[tuple[str, str]] = []

    async def work() -> list[int | None]:
        verifier = Verifier(timeout_s=20)
        equal = same_answer(verifier)

        async def counted(one: str, other: str) -> bool:
            compared.append((one, other))
            return await equal(one, other)

        try:
            return await votes(samples, counted)
        finally:
            await verifier.close()

    assert asyncio.run(work()) == [1, 1, 0, 2, 1, None, None, 0]
    assert compared
    compared.clear()
    asyncio.run(votes([response("correct", "2"), response("correct", "2"), response("wrong", "3")], None))
    assert not compared


def test_wrong_answers_are_not_compared_where_they_cannot_win() -> None:
    async def never(one: str, other: str) -> bool:
        raise AssertionError("nothing hangs on it")

    none_right = [response("wrong", "3"), response("wrong", "4"), response("wrong", "5")]
    most_right = [response("correct", "2"), response("correct", "2"), response("wrong", "5")]
    assert asyncio.run(votes(none_right, never)) == [1, 2, 3]
    assert asyncio.run(votes(most_right, never)) == [0, 0, 1]


def judged(one: Response, *texts: str) -> tuple[str, Reply]:
    item = Item(id=name_of(one), question="?", steps=("x", "y"), labels=(None, None))
    return item.id, Reply(item, tuple(parse(text, 2) for text in texts), 0, 0.0)


def test_process_accuracy_is_the_share_without_a_flagged_step() -> None:
    from capo_ray.credit.critique import render_reply

    responses = [response("correct", "2", id=str(n), mode="greedy") for n in range(4)]
    clean, first, unreadable = render_reply([]), render_reply([0]), "?"
    said = [(clean, clean), (first, clean), (first, first), (unreadable, unreadable)]
    replies = dict(judged(one, *texts) for one, texts in zip(responses, said, strict=True))
    both = process_accuracies(responses, replies, "intersection", 1, checked=False)
    assert both == {"unjudged": [0, 0, 0, 1], "process": [1, 1, 0]}
    assert process_accuracies(responses, replies, "union", 1, checked=False)["process"] == [1, 0, 0]
    sampled = response("wrong", "3", mode="sampled")  # greedy responses alone are looked at
    assert process_accuracies([*responses, sampled], replies, "union", 1, checked=False)["process"] == [1, 0, 0]


def test_the_tiny_worlds_steps_are_known() -> None:
    question = "Start with 17. Add 5, then subtract 8."
    right = "17 + 5 = 22.\n\n22 - 8 = 14.\n\nThe answer is \\boxed{14}."
    lucky = "17 + 5 = 23.\n\n22 - 8 = 14.\n\nThe answer is \\boxed{14}."
    responses = [
        response("correct", "14", question=question, response=text, id=str(n)) for n, text in enumerate((right, lucky))
    ]
    assert process_accuracies(responses, {}, "union", 1, checked=True) == {"process_true": [1, 0]}


def test_a_row_for_the_mean_has_what_all_benchmarks_have() -> None:
    made = figures({"a": {"greedy": [1.0, 0.0]}, "b": {"greedy": [1.0], "process": [1.0]}}, {"a": 2, "b": 1}, 0)
    assert set(made["mean"]) == {"greedy"} and made["mean"]["greedy"]["value"] == 0.75
    assert made["benchmarks"]["a"]["problems"] == 2
    assert table({"model": "m", **made}).row_count == 3
    assert "mean" not in figures({"a": {"greedy": [1.0]}}, {"a": 1}, 0)


def test_sizes_of_pass_at_k() -> None:
    assert [powers(k) for k in (0, 1, 2, 4, 6, 8)] == [[], [], [2], [2, 4], [2, 4, 6], [2, 4, 8]]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with pytest.raises(DataError, match="there is no file"):
        read_responses(path)
    path.write_text('{"benchmark": "x"}\n')
    with pytest.raises(DataError, match="line 1: no response of an evaluation"):
        read_responses(path)
