"""From a Config to what rooms that know no configuration are given of it, each in one place.

Leaves out what is made with that (build, build_critics) and what a setting means (config).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from capo_ray.config.block import filled
from capo_ray.config.run import Config
from capo_ray.credit.group import Scheme
from capo_ray.credit.reward import Outcome

if TYPE_CHECKING:
    from capo_ray.credit.template import PromptTemplate
    from capo_ray.critics.settings import CriticSettings


def critic_settings(config: Config, template: PromptTemplate) -> CriticSettings:
    """Of a Config with a critic."""
    from capo_ray.critics.settings import CriticSettings

    assert config.critic is not None
    return filled(CriticSettings, config.critic, config.reward, template=template, cache_seed=config.seed)


def scheme_of(config: Config) -> Scheme:
    reward = config.reward
    outcome = filled(
        Outcome,
        reward,
        source=reward.outcome,
        format_pattern=re.compile(reward.format_pattern),
        max_response_tokens=config.rollout.max_response_tokens,
    )
    return filled(Scheme, reward, config.algorithm, outcome=outcome)
