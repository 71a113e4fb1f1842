"""The engines of a benchmark: the critic's, and the tiny world's policy; each in this process, without Ray.

A critic on vLLM runs on one engine, whatever `critic.workers` says. Leaves out what is asked.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from capo_ray.config.critic import Voter
from capo_ray.config.run import Config
from capo_ray.credit.template import SHIPPED, PromptTemplate
from capo_ray.critics.service import Critics
from capo_ray.engines.protocols import CriticEngine
from capo_ray.models.find import find_model
from capo_ray.planning.bundles import Role, actor_name, critics_here
from capo_ray.seeds import seed_of
from capo_ray.training.build import make_critic, make_rollout
from capo_ray.training.build_critics import check_servers, critics_over, critics_without_actors
from capo_ray.training.settings import critic_engine_settings, rollout_settings, sampling_of
from capo_ray.types import JsonDict, Prompt

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore::FutureWarning"}
"""What keeps libraries from writing between a program's own lines; what they say at import all the same is caught by
`quiet`."""
ENGINE_LOG = "engine.log"


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """While an engine starts, what is written to stderr goes to `log`, and so does all that its own process ever
    writes there. Is shown after all where the start fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        begun = file.tell()
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            os.write(terminal, log.read_bytes()[begun:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


@asynccontextmanager
async def critics_of(config: Config, template: PromptTemplate, work: Path) -> AsyncIterator[Critics]:
    """The judging service of `config`, asked with `template`; files of random models go below `work`."""
    prepare(config, "critic")
    check_servers(config)
    places = {id(voter): place for place, voter in critics_here(config)}
    opened: list[Any] = []

    def engines_of(number: int, voter: Voter) -> Sequence[CriticEngine]:
        if voter.model is None:
            engines = critics_without_actors(voter)
        else:
            files = find_model(voter.model, f"{places[id(voter)]}.model", work, seed=config.seed + 1 + number)
            settings = critic_engine_settings(config, voter, files)
            with quiet(work / ENGINE_LOG):
                engines = (make_critic(settings, actor_name("critic", number)),)
        opened.extend(engines)
        return engines

    try:
        yield critics_over(config, template, engines_of)
    finally:
        for engine in opened:
            closing = engine.close() if hasattr(engine, "close") else None
            if closing is not None:
                await closing


def critics_and_prompt(config: Config, template: PromptTemplate) -> JsonDict:
    """Who judges and what is asked: what must be the same for critiques to be comparable."""
    critic = config.critic
    assert critic is not None
    voters = [
        voter.served_model or (voter.model.path if voter.model else voter.kind)
        for voter in critic.voters
        if not voter.same_critic
    ]
    return {
        "critics": voters,
        "template": template.name if critic.template in SHIPPED else f"{template.name} ({template.digest})",
        **{name: getattr(critic, name) for name in ("reference", "temperature", "top_p")},
        "max_critique_tokens": critic.max_critique_tokens,
        **({"engines": options} if any(options := [voter.engine for voter in critic.voters]) else {}),
    }


async def sample(config: Config, work: Path, count: int, advance: Callable[[], None]) -> list[tuple[str, str]]:
    """(question, response) of `count` held-out problems of the tiny world, by the policy, sampled as in training."""
    from capo_ray.tasks.arithmetic.world import Difficulty, problems

    prepare(config, "rollout")
    policy = find_model(config.policy, "policy", work, seed=config.seed)
    encode = policy.encoder(config.policy.system_prompt, config.policy.chat_template)
    sampling = sampling_of(config)
    asked = problems(0, count, Difficulty(operations=config.data.operations), split="held_out")
    with quiet(work / ENGINE_LOG):
        engine = make_rollout(rollout_settings(config, policy, trained=False), actor_name("rollout", 0))

    async def one(number: int, question: str) -> str:
        prompt = Prompt(id=f"held-out-{number}", question=question, token_ids=encode(question), answer="")
        seeds = {0: seed_of(config.seed, "critic_bench", prompt.id)}
        texts = [rollout.text async for rollout in engine.generate(prompt, sampling, seeds)]
        advance()
        return texts[0]

    try:
        responses = await asyncio.gather(*(one(number, problem.question) for number, problem in enumerate(asked)))
    finally:
        engine.close()
    return [(problem.question, response) for problem, response in zip(asked, responses, strict=True)]


def prepare(config: Config, role: Role) -> None:
    """What vLLM reads from the environment, set before it is imported."""
    from capo_ray.cluster.placement import environment

    os.environ.update(environment(config, role))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
