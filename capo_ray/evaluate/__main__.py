"""`python -m capo_ray.evaluate model=FOLDER_OR_ID suite=paper`: how good a model is, on benchmarks and any jsonl.

Every response is kept in OUT/responses.jsonl with its grade, every critique in OUT/critiques.jsonl: the same command
goes on where it was stopped, and shows the figures again when all is there. Leaves out what benchmarks are (suites),
grading, and what the figures mean (records.estimates).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import beside_run
from capo_ray.config.run import Config
from capo_ray.credit.steps import delimiter, segment
from capo_ray.credit.template import PromptTemplate
from capo_ray.critic_bench.engines import critics_and_prompt, critics_of
from capo_ray.critic_bench.replies import Reply, kept_replies, read_replies, say_failed
from capo_ray.critic_bench.replies import ask as ask_critics
from capo_ray.critics.labelled import Item
from capo_ray.critics.prompt import find_template
from capo_ray.critics.service import CriticsFailed
from capo_ray.data.problem import DataError
from capo_ray.engines.options import check_options
from capo_ray.evaluate.engines import policy_of
from capo_ray.evaluate.grading import grader, same_answer, steps_right
from capo_ray.evaluate.report import accuracies, figures, lengths, name_of, process_accuracies, table, with_process
from capo_ray.evaluate.response import Mode, Response, kept, read_responses
from capo_ray.evaluate.responses import Task, ask, tasks_of
from capo_ray.evaluate.settings import Options, configuration, options_of
from capo_ray.evaluate.suites import Question, Suite, find_suite, questions
from capo_ray.leaving import leave
from capo_ray.models.find import ModelFiles, find_model
from capo_ray.planning.machine import gpu_sizes
from capo_ray.planning.plan import refuse_silent
from capo_ray.program import GOES_ON, claim, need, progress, run_program
from capo_ray.tasks.verify import Verifier
from capo_ray.training.settings import sampling_of
from capo_ray.types import JsonDict, Sampling

USAGE = """usage: python -m capo_ray.evaluate model=FOLDER_OR_ID suite=SUITE_OR_FILE [key=value ...]

How good a model is, on benchmarks and any jsonl. The same command goes on where it was stopped.

  python -m capo_ray.evaluate model=runs/first/policy suite=math runs=1
  suite.NAME.KEY=VALUE    of a benchmark: suite.FILE.data.question_field=problem
  critic=NAME             critics judge the steps of every response: process accuracy
  +experiment=NAME        where all other configuration comes from
"""
RESPONSES, CRITIQUES = "responses.jsonl", "critiques.jsonl"
ABOUT, CRITICS = "evaluation.json", "critics.json"
REWARD_KEYS = ("vote", "min_valid_critiques", "segmenter", "segmenter_pattern")
"""What process accuracy depends on beside its critics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was found and checked before an engine starts."""

    suite: Suite
    problems: list[tuple[str, Question]]
    policy: ModelFiles
    tasks: list[Task]
    window: int


async def run(options: Options, config: Config) -> None:
    """Ask and judge what is not there yet. Raises ConfigError, DataError, CriticsFailed."""
    out = options.folder
    template = find_template(config.critic) if options.judged and config.critic else None
    suite = find_suite(options.suite or "", options.suite_overrides)
    asked = find(options, config, suite)
    claim(out / ABOUT, about_of(options, config, suite, asked.policy), "another evaluation")
    if template:
        assert config.critic is not None
        about: JsonDict = {"critiques": config.critic.critiques}
        about |= {key: getattr(config.reward, key) for key in REWARD_KEYS}
        claim(out / CRITICS, about | critics_and_prompt(config, template), "what other critics say")
    modes: dict[Mode, Sampling] = {"greedy": Sampling(max_tokens=config.rollout.max_response_tokens, temperature=0)}
    modes["sampled"] = sampling_of(config)
    missing = sum(len(indices) for task in asked.tasks for indices in task.indices.values())
    if missing:
        verifier = Verifier(processes=len(os.sched_getaffinity(0)), timeout_s=config.reward.verify_timeout_s)
        try:
            async with policy_of(config, asked.policy, window=asked.window, logs=out / "logs") as engine:
                with progress("answered", missing) as advance:
                    await ask(
                        asked.tasks,
                        engine,
                        modes,
                        grader(suite, verifier),
                        out / RESPONSES,
                        seed=config.seed,
                        at_once=2 * config.rollout.workers * config.rollout.max_sequences,
                        progress=advance,
                    )
        finally:
            await verifier.close()
    if template:
        await judge(asked, config, template, out)


async def judge(asked: Asked, config: Config, template: PromptTemplate, out: Path) -> None:
    """Have critics judge the responses that they have not judged yet, and those again of which critiques failed."""
    assert config.critic is not None
    items = items_of(with_process(read_responses(out / RESPONSES)), asked.problems, asked.suite, config)
    done = {reply.item.id for reply in kept_replies(out / CRITIQUES) if not reply.failed}
    if all(item.id in done for item in items):
        return
    async with critics_of(config, template, out) as critics:
        with progress("judged", len(items)) as advance:
            reference, path = config.critic.reference, out / CRITIQUES
            replies = await ask_critics(items, critics, path, reference=reference, seed=config.seed, progress=advance)
    say_failed(replies)


def find(options: Options, config: Config, suite: Suite) -> Asked:
    """Read the problems, find the model, and check that they fit together. Raises ConfigError or DataError."""
    if config.cluster.device == "gpu" and config.cluster.address is None and not gpu_sizes():
        raise ConfigError("cluster: this machine has no GPU; cluster=cpu runs on its cores, where small models do")
    if config.cluster.address is not None:
        refuse_silent(config.cluster.address)
    if options.judged and config.critic and "truth" in {v.kind for v in config.critic.voters}:
        strange = [name for name, benchmark in suite.items() if benchmark.answer != "arithmetic"]
        if strange:
            raise ConfigError(f"critic: this one knows the tiny world alone, and the suite has {', '.join(strange)}")
    check_options(config, trains=False)
    policy = find_model(config.policy, "policy", options.folder, seed=config.seed)
    problems = [
        (name, question)
        for name, benchmark in suite.items()
        for question in questions(name, benchmark, seed=config.seed, count=options.count, data_dir=options.data_dir)
    ]
    encode = policy.encoder(config.policy.system_prompt, config.policy.chat_template)
    wanted: dict[Mode, int] = {"greedy": options.runs, "sampled": options.k}
    tasks = tasks_of(problems, encode, wanted, kept(options.folder / RESPONSES))
    longest = max(tasks, key=lambda task: len(task.prompt.token_ids)).prompt
    window = len(longest.token_ids) + config.rollout.max_response_tokens
    if window > policy.window:
        advice = "this model cannot read it" if len(longest.token_ids) >= policy.window else "lower it"
        raise ConfigError(
            f"rollout.max_response_tokens: problem {longest.id} has {len(longest.token_ids)} tokens, and with "
            f"{config.rollout.max_response_tokens} of a response it does not fit the model's window of "
            f"{policy.window}; {advice}"
        )
    return Asked(suite=suite, problems=problems, policy=policy, tasks=tasks, window=window)


def about_of(options: Options, config: Config, suite: Suite, policy: ModelFiles) -> JsonDict:
    """Whose results a folder holds: everything that they depend on."""
    weights = [file.stat() for file in sorted(policy.folder.glob("*.safetensors"))]
    return {
        "model": options.model,
        "weights": [f"{stat.st_size} bytes of {stat.st_mtime:.0f}" for stat in weights],
        "suite": options.suite,
        "benchmarks": {name: benchmark.model_dump(mode="json") for name, benchmark in suite.items()},
        "data_dir": str(options.data_dir or ""),
        "count": options.count,
        "runs": options.runs,
        "k": options.k,
        "seed": config.seed,
        "system_prompt": config.policy.system_prompt,
        "max_response_tokens": config.rollout.max_response_tokens,
        **({"engine": config.rollout.engine} if config.rollout.engine else {}),
        **({"temperature": config.rollout.temperature, "top_p": config.rollout.top_p} if options.k else {}),
    }


def items_of(
    responses: Sequence[Response], problems: Sequence[tuple[str, Question]], suite: Suite, config: Config
) -> list[Item]:
    """The responses as critics judge them, with the truth of their steps where it is known."""
    between = delimiter(config.reward.segmenter, config.reward.segmenter_pattern)
    solutions = {(name, question.problem.id): question.problem.solution for name, question in problems}
    items = []
    for one in sorted(responses, key=lambda response: response.key):
        steps = tuple(one.response[part.start : part.shown_end] for part in segment(one.response, between))
        known = suite[one.benchmark].answer == "arithmetic"
        right = steps_right(one.question, one.response) if known else ()
        items.append(
            Item(
                id=name_of(one),
                question=one.question,
                steps=steps,
                labels=tuple(not step for step in right) if len(right) == len(steps) else (None,) * len(steps),
                answer=one.gold,
                solution=solutions[one.benchmark, one.id],
            )
        )
    return items


async def measured(folder: Path) -> JsonDict:
    """All figures of what `folder` holds. Raises DataError."""
    if not (folder / ABOUT).is_file():
        raise DataError(f"replay: {folder} holds no evaluation: there is no {ABOUT}")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    responses = read_responses(folder / RESPONSES)
    judged = (folder / CRITICS).is_file() and (folder / CRITIQUES).is_file()
    critics = json.loads((folder / CRITICS).read_text(encoding="utf-8")) if judged else {}
    replies = {reply.item.id: reply for reply in read_replies(folder / CRITIQUES)} if judged else {}
    verifier = Verifier(processes=len(os.sched_getaffinity(0)))
    per_problem, problems = {}, {}
    try:
        for name, benchmark in about["benchmarks"].items():
            mine = [response for response in responses if response.benchmark == name]
            if not mine:
                continue
            equal = same_answer(verifier) if benchmark["answer"] == "math" else None
            checked = benchmark["answer"] == "arithmetic"
            process = _process(mine, replies, critics, checked=checked)
            per_problem[name] = await accuracies(mine, equal) | process | lengths(mine)
            problems[name] = len({response.id for response in mine})
    finally:
        await verifier.close()
    named = {name: about[name] for name in ("model", "suite", "runs", "k", "seed")}
    return {**named, **figures(per_problem, problems, about["seed"])}


def _process(
    responses: Sequence[Response], replies: Mapping[str, Reply], critics: JsonDict, *, checked: bool
) -> dict[str, list[float]]:
    """Nothing of critics as long as some of the responses are not judged."""
    judged = replies if all(name_of(response) in replies for response in with_process(responses)) else {}
    vote, min_valid = critics.get("vote", "intersection"), critics.get("min_valid_critiques", 1)
    return process_accuracies(responses, judged, vote, min_valid, checked=checked)


def show(made: JsonDict, out: Path) -> None:
    """Print the table and write the figures to `out`."""
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 160).print(table(made))
    print(f"Everything is in {out}: {RESPONSES} has every response, results.json every figure")


def work(arguments: list[str]) -> int:
    options = options_of(arguments)
    need("numpy", "rich", *(() if options.replay else ("vllm",)))
    if options.replay is None:
        asyncio.run(run(options, configuration(options)))
    folder = options.replay or options.folder
    show(asyncio.run(measured(folder)), options.out or folder)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    failures = (CriticsFailed, RuntimeError, ConnectionError, ExceptionGroup)
    return run_program(work, argv, USAGE, settings=beside_run(Options), failures=failures, afterwards=GOES_ON)


if __name__ == "__main__":
    leave(main())
