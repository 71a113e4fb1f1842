"""The configuration of a run, checked when it is made.

Leaves out where it comes from (see `compose`), what a machine can hold (see `planning`), and whether files that are
named exist and fit together (see `training`).
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from capo_ray.config.critic import Voter
from capo_ray.config.fields import Fields
from capo_ray.config.rules import check


class Config(Fields):
    """One run."""

    @property
    def longest_in_a_row(self) -> int | None:
        """Tokens of the longest sequence that may stand beside others in a row of the trainer; None where none does."""
        if self.trainer.packing == "padded":
            return None
        return self.data.max_prompt_tokens + self.rollout.max_response_tokens

    @property
    def base_critic(self) -> Voter | None:
        """The critic that is the policy's base model, on the engines that sample."""
        return self.critic.base if self.critic else None

    @property
    def rollout_window(self) -> int | None:
        """Tokens of the context window of engines that sample; None: the policy's own, since its base judges there."""
        if self.base_critic:
            return self.base_critic.window
        return self.data.max_prompt_tokens + self.rollout.max_response_tokens

    @model_validator(mode="after")
    def _check(self) -> Self:
        check(self)
        return self
