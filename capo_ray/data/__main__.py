"""`python -m capo_ray.data check [key=value ...]`: what a run would make of a data set, before it does.

Takes configuration as `capo_ray.launch` does and reads its `data`: counts and lengths, repeated questions, overlaps
with evaluation sets, rows that stop a run, prompts that are too long, and examples as the policy reads them. Starts
nothing and changes nothing.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.block import setting
from capo_ray.config.blocks import Data, Source
from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import beside_run
from capo_ray.config.model import Model
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.config.run import Config
from capo_ray.data.check import Found, Overlap, duplicates_of, lengths_of, most_common, overlap, sort_rows, too_long
from capo_ray.data.columns import named
from capo_ray.data.gold import ENOUGH, look_at
from capo_ray.data.problem import DataError, Problem, question_of, why_unanswered
from capo_ray.data.read import problems, rows
from capo_ray.files.output import check_output, output_file
from capo_ray.models.chat import conversation
from capo_ray.models.find import folder_here, shown, tokenizer_in
from capo_ray.program import run_program

USAGE = """usage: python -m capo_ray.data check [key=value ...]

What a run would make of a data set, before it does. Starts nothing and changes nothing.

  python -m capo_ray.data check data=plain data.path=FILE against=math500,FILE.jsonl
  data=gsm8k data.path=FILE     a data set of conf/data, and where it is
  data.path=FILE data.question_field=q data.answer_field=a     your own columns
  policy.tokenizer=FOLDER       lengths in tokens, where the policy's own tokenizer is not on this machine
  +experiment=NAME              where all other configuration comes from (llama3b_intersection)

Exit code 1: there are rows that a run would refuse, or none that it could use.
2: the data set cannot be read, or a key is wrong.
"""
EVALUATION = ("paper",)
NOT_REACHED = "no way to the Hugging Face hub; name a file of it"
HELD_OUT = "held out"
REFUSES = 1
WIDTH = 100
Measure = Callable[[Sequence[str]], list[int]]


class Settings(BesideRun):
    """Of this program."""

    against: tuple[str, ...] = setting(
        "evaluation sets that the data must not overlap: of conf/suite, or files", EVALUATION
    )
    show: int = setting("examples to show", 2, ge=0)
    out: AnyPath | None = setting("file for all figures (JSON); null: none", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    config: Config
    against: tuple[str, ...] = EVALUATION
    show: int = 2
    out: Path | None = None


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError."""
    given = read_own(Settings, arguments)
    rest = given.overrides
    named = any(argument.startswith("+experiment=") for argument in rest)
    # held-out problems are those of `against`, unless an experiment or the user names some
    config = compose(rest if named else ["+experiment=llama3b_intersection", "data.evaluation=null", *rest])
    if config.data.kind == "arithmetic":
        raise ConfigError(f"data.kind: {config.data.kind} is made up, there is nothing to check; name a set with data=")
    return Options(config=config, against=given.against, show=given.show, out=given.out)


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(options: Options) -> dict[str, Any]:
    """Everything that is shown, as plain values. Raises DataError where the data set as a whole cannot be read."""
    config, data = options.config, options.config.data
    found = sort_rows(problems(data))
    if not found.num_rows:
        raise DataError(f"data.path: {data.path} is empty")
    measure = _measure(config.policy)
    return {
        "data": {"path": data.path, "subset": data.subset, "split": data.split},
        "rows": found.num_rows,
        "usable": len(found.problems),
        "why_none": why_unanswered(data),
        "refused": {reason: {"rows": len(said), "first": said[0]} for reason, said in found.refused.items()},
        "unasked": {"rows": len(found.unasked), "first": found.unasked[:1]},
        "unanswered": {"rows": len(found.unanswered), "first": found.unanswered[:1]},
        **_lengths(found, config, measure),
        "answers": most_common(problem.answer for problem in found.problems),
        "golds": asdict(look_at(found.problems)) if data.kind == "math" else None,
        "duplicates": asdict(duplicates_of(found.problems)),
        "overlaps": [asdict(one) if isinstance(one, Overlap) else one for one in _overlaps(found, options)],
        "examples": [
            {"id": problem.id, "prompt": _text(problem, config.policy), "answer": problem.answer}
            for problem in found.problems[: options.show]
        ],
    }


def _lengths(found: Found, config: Config, measure: Measure | None) -> dict[str, Any]:
    count = measure or _characters
    columns = {
        "question": count([problem.question for problem in found.problems]),
        "solution": count([problem.solution for problem in found.problems if problem.solution]),
        "answer": count([problem.answer for problem in found.problems]),
    }
    long: dict[str, Any] = {"limit": config.data.max_prompt_tokens, "known": measure is not None}
    if measure is not None:
        prompts = measure([_text(problem, config.policy) for problem in found.problems])
        columns = {"prompt": prompts, **columns}
        over = too_long(found.problems, prompts, config.data.max_prompt_tokens)
        long |= {"rows": len(over), "longest": over[:1]}
    lengths = {name: lengths_of(values) for name, values in columns.items()}
    return {
        "unit": "characters" if measure is None else "tokens",
        "lengths": {name: asdict(one) for name, one in lengths.items() if one is not None},
        "too_long": long,
    }


def _characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def _measure(policy: Model) -> Measure | None:
    """What counts the tokens of texts; None where the policy's tokenizer is not on this machine."""
    folder = folder_here(policy.tokenizer or policy.path)
    if not folder.is_dir():
        return None
    tokenizer = tokenizer_in(folder, "policy.tokenizer")
    return lambda texts: [len(coded.ids) for coded in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _text(problem: Problem, policy: Model) -> str:
    messages = conversation(problem.question, problem.system or policy.system_prompt)
    return shown(messages, policy, add_generation_prompt=True)


def _overlaps(found: Found, options: Options) -> Iterator[Overlap | dict[str, str]]:
    """One for each evaluation set, or why it was not looked at."""
    data = options.config.data
    sets = [one for name in options.against for one in _evaluation_sets(name, data)]
    if (held_out := data.evaluation) is not None:
        sets.insert(0, (HELD_OUT, held_out))
    hub_is_up = True
    for name, source in sets:
        on_hub = not Path(str(source.path)).expanduser().exists()
        if on_hub and not hub_is_up:
            yield {"name": name, "missing": NOT_REACHED}
            continue
        try:
            questions = list(_questions(source))
        except DataError as error:
            if not on_hub or name == HELD_OUT:  # a run would stop too
                raise
            hub_is_up = "ConnectionError" not in str(error)
            said = str(error).removeprefix("data.path: ").partition(" Check data.subset")[0]
            yield {"name": name, "missing": said if hub_is_up else NOT_REACHED}
            continue
        yield overlap(found.problems, name, questions)


def _questions(source: Source) -> Iterator[str]:
    found: Source | None = None
    for where, _, record in rows(source):
        found = found or named(source, {**_sound(record), "answer": ""}, where)
        yield question_of(_sound(record), where, found)[0]


def _sound(record: Any) -> Any:
    if isinstance(record, DataError):
        raise record
    return record


def _evaluation_sets(name: str, data: Data) -> list[tuple[str, Source]]:
    """Those of a suite of conf/suite; or a file, with the columns of `data` or a usual name for its questions."""
    from capo_ray.evaluate.suites import find_suite

    known = sorted(path.stem for path in (conf_dir() / "suite").glob("*.yaml"))
    if name in known:
        return [(key, one.data) for key, one in find_suite(name).items() if one.data.kind == "math"]
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"against: there is no file {path}, and no such suite in conf/suite ({', '.join(known)})")
    own = data.model_copy(update={"path": str(path), "subset": None})
    where, _, first = next(rows(own))
    if data.question_field not in _sound(first):
        own = named(own.model_copy(update={"question_field": None}), {**_sound(first), "answer": ""}, where)
    return [(name, own)]


# ---- showing ---------------------------------------------------------------------------------------------------------


def report(made: dict[str, Any]) -> str:
    """The figures for people, at most WIDTH wide but for names and examples."""
    data = made["data"]
    parts = (data["path"],) if Path(data["path"]).is_file() else (data["path"], data["subset"], data["split"])
    where = " ".join(str(part) for part in parts if part)
    unanswered, long = made["unanswered"], made["too_long"]
    lines = [f"data       {where}", f"rows       {made['rows']:,}, usable {made['usable']:,}"]
    for refused in made["refused"].values():
        said = f"{refused['rows']:,} rows, the first is {refused['first']}"
        lines += textwrap.wrap(said, WIDTH, initial_indent="REFUSED    ", subsequent_indent=" " * 11)
    for what, left in (("a question", made["unasked"]), ("an answer", unanswered)):
        if left["rows"]:
            lines.append(f"left out   {left['rows']:,} without {what} (first: {left['first'][0]})")
    if not made["usable"]:
        said = made["why_none"] if unanswered["rows"] else "every row is refused or asks nothing"
        said = f"nothing can be used: {said}"
        return "\n".join(
            [*lines, *textwrap.wrap(said, WIDTH, initial_indent="REFUSED    ", subsequent_indent=" " * 11)]
        )
    lines.append(_too_long(long))
    lines += _length_table(made)
    common = ", ".join(f"{answer[:20]!r} {number:,}" for answer, number in made["answers"])
    lines += [f"answers    most common: {common}", *_golds(made["golds"]), *_duplicates(made["duplicates"])]
    lines.append("overlap    with evaluation sets" if made["overlaps"] else "overlap    no evaluation set was named")
    for one in made["overlaps"]:
        name = Path(one["name"]).name
        if "missing" in one:
            said = f"  {name:<22} not looked at: {one['missing']}"
            lines += textwrap.wrap(said, WIDTH, subsequent_indent=" " * 25, break_on_hyphens=False)
            continue
        met = f"{len(one['met']):,} problems ask one of its" if one["met"] else "no problem asks one of its"
        lines.append(f"  {name:<22} {met} {one['size']:,} questions{_some(one['met'])}")
    for example in made["examples"]:
        lines.append(f"example {example['id']}, gold answer {example['answer']!r}")
        lines += [f"  | {line}" for line in example["prompt"].split("\n")]
    return "\n".join(lines)


def _too_long(long: dict[str, Any]) -> str:
    if not long["known"]:
        return (
            f"too long   not known (data.max_prompt_tokens {long['limit']:,}): the policy's tokenizer is not on this\n"
            "           machine; name one with policy.tokenizer=FOLDER"
        )
    if not long["rows"]:
        return f"too long   none of more than data.max_prompt_tokens {long['limit']:,}"
    (name, tokens), *_ = long["longest"]
    return (
        f"left out   {long['rows']:,} of more than data.max_prompt_tokens {long['limit']:,} (most: {name}, {tokens:,})"
    )


def _length_table(made: dict[str, Any]) -> Iterator[str]:
    yield f"{'length in ' + made['unit']:<24}{'least':>9}{'half':>9}{'90 %':>9}{'99 %':>9}{'most':>9}{'mean':>11}"
    for name, one in made["lengths"].items():
        shares = "".join(f"{value:>9,}" for value in one["percentiles"].values())
        yield f"  {name:<22}{one['least']:>9,}{shares}{one['most']:>9,}{one['mean']:>11,.1f}"


def _golds(found: dict[str, Any] | None) -> Iterator[str]:
    """Whether the verifier knows the gold answers again, and which are none."""
    if found is None:
        return
    of = f"of {found['graded']:,} different ones"
    yield f"grading    {found['itself']:.1%} equal to themselves, {found['respelled']:.1%} to simple respellings ({of})"
    said = []
    if found["itself"] < 1:
        said.append(
            f"some gold answers do not equal themselves, so nobody is paid for them ({found['itself_first'][0]})"
        )
    if found["respelled"] < ENOUGH:
        said.append(f"right answers are missed where they are spelled otherwise ({found['respelled_first'][0]})")
    if found["spelled"]:
        what = f"{found['spelled']:,} of them are compared as they are spelled, being of no kind of docs/equality.md"
        said.append(f"{what} ({found['spelled_first'][0]})")
    if found["suspicious"]:
        said.append(
            f"{found['suspicious']:,} rows have a gold answer that looks like none ({found['suspicious_first'][0]})"
        )
    for one in said:
        yield from textwrap.wrap(one, WIDTH, initial_indent="WARNING    ", subsequent_indent=" " * 11)


def _duplicates(found: dict[str, Any]) -> Iterator[str]:
    if not found["repeated"]:
        yield "repeated   no question stands twice"
        return
    yield f"repeated   {found['repeated']:,} problems ask what an earlier one asks"
    if found["contradictions"]:
        first = " and ".join(found["contradictions"][0])
        yield f"           questions with different answers: {len(found['contradictions']):,} ({first})"


def _some(ids: Sequence[str]) -> str:
    return f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})" if ids else ""


def work(arguments: list[str]) -> int:
    if arguments[0] != "check":
        raise ConfigError(f"{arguments[0]!r} is no command; there is: python -m capo_ray.data check")
    options = options_of(arguments[1:])
    if options.out is not None:
        check_output(options.out)
    made = figures(options)
    print(report(made))
    if options.out is not None:
        with output_file(options.out) as file:
            file.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    return REFUSES if made["refused"] or not made["usable"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=beside_run(Settings))


if __name__ == "__main__":
    sys.exit(main())
