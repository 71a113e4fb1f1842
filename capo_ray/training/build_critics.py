"""From a Config to the judging service: its critics, wherever they run, and how they are asked.

Leaves out the engines that this run starts for critics, and their actors (build).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from capo_ray import extension
from capo_ray.config.critic import Voter, voter_field
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.training.settings import critic_settings

if TYPE_CHECKING:
    from capo_ray.credit.template import PromptTemplate
    from capo_ray.critics.budget import CriticBudget
    from capo_ray.critics.service import Critics
    from capo_ray.engines.protocols import CriticEngine

log = logging.getLogger(__name__)


def make_critics(config: Config, template: PromptTemplate | None, actors: Sequence[tuple[str, Any]]) -> Critics | None:
    """The judging service over the `actors` that judge here, in the order of their critics, and over servers."""
    from capo_ray.cluster.critic_pool import RemoteCritic

    if config.critic is None or template is None:
        return None
    left = iter(actors)

    def engines_of(number: int, voter: Voter) -> Sequence[CriticEngine]:
        if voter.kind not in ("vllm", "base"):
            return critics_without_actors(voter)
        return tuple(RemoteCritic(*actor) for actor in islice(left, voter.workers if voter.kind == "vllm" else None))

    return critics_over(config, template, engines_of)


def critics_over(
    config: Config, template: PromptTemplate, engines_of: Callable[[int, Voter], Sequence[CriticEngine]]
) -> Critics:
    """The judging service; `engines_of` gives the engines of each critic, by its number."""
    from capo_ray.critics.service import Critics
    from capo_ray.critics.service import Voter as Engines

    assert config.critic is not None
    voters: list[Engines] = []
    for number, voter in enumerate(config.critic.voters):
        engines = engines_of(number, voter)
        if voter.same_critic:
            engines = (*voters.pop().engines, *engines)
        voters.append(Engines(engines=engines, max_sequences=voter.max_sequences))
    return Critics(voters[0].engines, critic_settings(config, template), others=voters[1:])


def critics_without_actors(voter: Voter) -> tuple[CriticEngine, ...]:
    """Those that live where they are asked from: servers, a user's own, and those without a model."""
    if voter.kind == "http":
        from capo_ray.engines.critic_http import HttpCritic

        return tuple(HttpCritic(voter, endpoint) for endpoint in voter.endpoints)
    if voter.kind == "base":
        raise ConfigError(
            "critic.kind: base judges in a run, on its engines; here take kind vllm and the policy's path"
        )
    if extension.is_own(voter.kind):
        make: Callable[[], CriticEngine] = extension.load(voter.kind, callable, is_a="a class of critics")
        return (make(),)
    from capo_ray.tasks.arithmetic.critics import placebo, truth

    return (truth() if voter.kind == "truth" else placebo(voter.flag_share),)


def check_servers(config: Config) -> None:
    """Raises ConfigError where no server of a critic answers, or one refuses the key or serves another model."""
    from capo_ray.engines.critic_http import HttpCriticError, served_models

    for number, voter in enumerate(config.critic.voters if config.critic else ()):
        place, faults = voter_field(number), []
        for endpoint in voter.endpoints:
            try:
                names = served_models(voter, endpoint)
            except HttpCriticError as error:
                faults.append(str(error))
                continue
            if names and voter.served_model not in names:
                there = ", ".join(names[:10])
                raise ConfigError(f"{place}.served_model: {endpoint} serves {there}, not {voter.served_model!r}")
        if faults and len(faults) == len(voter.endpoints):
            raise ConfigError(f"{place}.endpoints: no server can be used: {'; '.join(faults)}")
        for fault in faults:
            log.warning("%s.endpoints: %s; it is tried again during the run", place, fault)


def critic_budget(config: Config) -> CriticBudget | None:
    from capo_ray.critics.budget import CriticBudget

    critic = config.critic
    if critic is None or critic.tokens_per_step is None:
        return None
    return CriticBudget(
        critic.tokens_per_step,
        most_per_response=critic.critiques * critic.max_critique_tokens,
        max_staleness=config.algorithm.max_staleness,
    )
