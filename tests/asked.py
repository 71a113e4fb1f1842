"""How critics are asked in tests: as a configuration that says nothing of it does, but for what a test sets."""

from typing import Any

from capo_ray.config.block import filled
from capo_ray.config.critic import Critic
from capo_ray.config.method import Reward
from capo_ray.credit.template import shipped
from capo_ray.critics.settings import CriticSettings


def asked_with(**given: Any) -> CriticSettings:
    """`given` are fields of CriticSettings."""
    of_the_run = {"template": shipped("paper"), "cache_seed": 0}
    return filled(CriticSettings, Critic(kind="truth"), Reward(), **(of_the_run | given))
