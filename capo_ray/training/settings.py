"""From a Config to what engines, and rooms that know no configuration, are given of it, each in one place.

Leaves out what is made with that (build, build_critics) and what a setting means (config).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from capo_ray.config.block import filled
from capo_ray.config.critic import Voter
from capo_ray.config.run import Config
from capo_ray.credit.group import Scheme
from capo_ray.credit.reward import Outcome
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.models.find import ModelFiles
from capo_ray.types import Sampling

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


def sampling_of(config: Config) -> Sampling:
    rollout = config.rollout
    return filled(Sampling, rollout, max_tokens=rollout.max_response_tokens)


def rollout_settings(config: Config, policy: ModelFiles, *, trained: bool = True) -> VllmSettings:
    """`trained`: a trainer sends the engine weights or an adapter; else it samples from the model's folder as it is."""
    judges = trained and config.base_critic is not None
    adapter = config.trainer.lora if trained and config.cluster.lora_sync == "adapter" else None
    return VllmSettings(
        block=config.rollout,
        model=str(policy.folder),
        tokenizer=str(policy.tokenizer),
        dtype=config.policy.dtype,
        window=config.rollout_window,
        device=config.cluster.device,
        weight_transfer=f"capo_{config.cluster.weight_transfer}" if trained else None,
        lora_rank=adapter.rank if adapter else None,
        judges=judges,
        chat_template=config.policy.chat_template if judges else None,
    )


def critic_engine_settings(config: Config, voter: Voter, critic: ModelFiles) -> VllmSettings:
    assert voter.model is not None
    return VllmSettings(
        block=voter,
        model=str(critic.folder),
        tokenizer=str(critic.tokenizer),
        dtype=voter.model.dtype,
        window=voter.window,
        device=config.cluster.device,
        chat_template=voter.model.chat_template,
    )
