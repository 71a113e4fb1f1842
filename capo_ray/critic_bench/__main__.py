"""`python -m capo_ray.critic_bench critic=NAME data=processbench path=FILE_OR_FOLDER k=8 out=DIR`: a critic's worth.

Has a critic judge responses whose steps have known labels, prints what each vote of its critiques would be worth, and
advises one. `data=arithmetic` samples responses from the policy of the experiment, in the tiny world, and labels them
exactly; with `path=FILE.jsonl` it takes those of the file. Every reply is kept in DIR/replies.jsonl: the same command
goes on where it was stopped, and `replay=FILE` computes all figures again without a critic. What is not one of this
program's own keys is configuration as `capo_ray.launch` takes it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from capo_ray.config.block import setting
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.config.run import Config
from capo_ray.credit.template import PromptTemplate
from capo_ray.critic_bench.engines import critics_and_prompt, critics_of, sample
from capo_ray.critic_bench.replies import Reply, ask, read_replies, say_failed
from capo_ray.critic_bench.report import evaluate, lines, plot, table
from capo_ray.critics.labelled import arithmetic, processbench, read_responses
from capo_ray.critics.prompt import find_template
from capo_ray.critics.service import CriticsFailed
from capo_ray.data.problem import DataError
from capo_ray.engines.options import check_options
from capo_ray.files.durable import write_text
from capo_ray.leaving import leave
from capo_ray.planning.bundles import critics_here
from capo_ray.program import GOES_ON, claim, need, progress, run_program
from capo_ray.types import JsonDict

USAGE = """usage: python -m capo_ray.critic_bench critic=NAME data=KIND path=FILE_OR_FOLDER out=DIR [key=value ...]

What a critic is worth on responses whose steps have known labels, and which vote of its critiques to take. The same
command goes on where it was stopped.

  python -m capo_ray.critic_bench critic=tiny data=arithmetic count=500 out=bench-tiny
  python -m capo_ray.critic_bench replay=bench-tiny     all figures again, without a critic
  +experiment=NAME           where all other configuration comes from (tiny_cpu)
  critic=paper cluster=gpu   an engine here; or servers:
  critic=http 'critic.endpoints=[http://HOST:8000/v1]' critic.served_model=NAME
"""
SAMPLED = 500


class Options(BesideRun):
    """Of this program."""

    data: Literal["processbench", "arithmetic"] | None = setting(
        "whose steps are judged; arithmetic: the tiny world", None
    )
    path: AnyPath | None = setting("a file of ProcessBench or a folder of them; arithmetic: a file of responses", None)
    k: int = setting("critiques per response", 8, ge=1)
    out: AnyPath | None = setting("folder of replies and figures", None)
    replay: AnyPath | None = setting("folder of before, or its replies.jsonl, whose figures are made again", None)
    count: int | None = setting(f"the first so many responses; null: all, of those sampled {SAMPLED}", None, ge=1)


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError."""
    options = read_own(Options, arguments)
    if (replay := options.replay) is not None:
        if options.overrides or options.data:
            raise ConfigError("replay: it takes no other key than `out`: the replies say what was judged and by whom")
        return options.model_copy(update={"replay": replay / "replies.jsonl" if replay.is_dir() else replay})
    if options.data is None:
        raise ConfigError("data: must be processbench or arithmetic; it is not given")
    if options.data == "processbench" and options.path is None:
        raise ConfigError("path: must name a ProcessBench file, or a folder of them, when data is processbench")
    if options.out is None:
        raise ConfigError("out: must name a folder for the replies and the figures")
    return options


def configuration(options: Options) -> Config:
    """The experiment's configuration with k critiques, each asked for."""
    named = any(given.startswith("+experiment=") for given in options.overrides)
    experiment = () if named else ("+experiment=tiny_cpu",)
    asked = (f"critic.critiques={options.k}", "critic.adaptive=false")
    reliably = ("critic.on_outage=wait", "critic.cache=0")
    return compose([*experiment, *options.overrides, *asked, *reliably])


async def run(options: Options, config: Config, out: Path) -> list[Reply]:
    """Judge what is not judged yet; all replies."""
    assert config.critic is not None
    check_options(config, trains=False)
    template = find_template(config.critic)
    given: Sequence[object] = ()
    if options.data == "processbench":
        given = items = processbench(options.path or out)
    elif options.path is not None:
        given = read_responses(options.path)
    _claim(options, config, template, out, given)
    if options.data == "arithmetic":
        items = arithmetic(await _responses(options, config, out))
    items = items[: options.count]
    async with critics_of(config, template, out) as critics:
        with progress("judged", len(items)) as advance:
            return await ask(
                items,
                critics,
                out / "replies.jsonl",
                reference=config.critic.reference,
                seed=config.seed,
                progress=advance,
            )


def _claim(options: Options, config: Config, template: PromptTemplate, out: Path, given: Sequence[object]) -> None:
    """Write down whose replies `out` holds, or see that they are this benchmark's; `given` is what the data file holds.
    Raises ConfigError."""
    content = blake2b(repr(given).encode(), digest_size=8).hexdigest() if given else ""
    mine: JsonDict = {"data": options.data, "path": str(options.path or ""), "content": content}
    mine |= {"k": options.k, "seed": config.seed}
    mine |= critics_and_prompt(config, template)
    claim(out / "bench.json", mine, "replies of another benchmark")


async def _responses(options: Options, config: Config, out: Path) -> list[tuple[str, str]]:
    """Those of the file that was named; else those that were sampled before; else new ones, which are kept."""
    if options.path is not None:
        return read_responses(options.path)
    kept = out / "responses.jsonl"
    count = options.count or SAMPLED
    if not kept.is_file():
        with progress("sampled", count) as advance:
            pairs = await sample(config, out, count, advance)
        lines = (json.dumps({"question": question, "response": response}) + "\n" for question, response in pairs)
        write_text(kept, "".join(lines))
    pairs = read_responses(kept)
    if len(pairs) < count:
        raise ConfigError(f"count: {out} holds {len(pairs)} sampled responses, {count} are asked for; name another out")
    return pairs


def show(replies: Sequence[Reply], out: Path | None) -> None:
    """Print the figures and write them to `out`."""
    from rich.console import Console

    figures = evaluate(replies)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(figures))
    for line in lines(figures):
        print(line)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        (out / "precision_recall.svg").write_text(plot(figures), encoding="utf-8")


def work(arguments: list[str]) -> int:
    options = options_of(arguments)
    if options.replay is not None:
        replies = read_replies(options.replay)
        if not replies:
            raise DataError(f"replay: {options.replay} holds no reply")
    else:
        assert options.out is not None
        config = configuration(options)
        need("rich", *(["ray", "vllm"] if critics_here(config) else []))
        replies = asyncio.run(run(options, config, options.out))
        say_failed(replies)
    show(replies, options.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    failures = (CriticsFailed, ExceptionGroup)
    return run_program(work, argv, USAGE, settings=beside_run(Options), failures=failures, afterwards=GOES_ON)


if __name__ == "__main__":
    leave(main())
