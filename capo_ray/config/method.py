"""The choices of the method: from votes to rewards, from rewards to advantages, from advantages to a loss.

The names are those of `credit` and `learn`, which nothing here imports; a test holds them together.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capo_ray.config.blocks import Block, or_own

Vote = Literal["intersection", "majority", "strict_majority", "union", "average", "greedy"]
ErrorSet = Literal["all", "from_first", "first"]
Returns = Literal["none", "suffix_sum", "suffix_min"]
OutcomeSource = Literal["verifier", "critic"]
Advantage = Literal["capo", "capo_mean", "capo_channels", "capo_batch", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
Surrogate = Literal["clip", "cispo", "gspo", "gspo_token"]


class Reward(Block):
    """From votes and outcomes to token rewards (docs/algorithm.md sections 4 and 5)."""

    vote: Annotated[str, *or_own(Vote)] = "intersection"
    outcome_weight: float = Field(2.0, ge=0, description="C")
    process_weight: float = Field(1.0, ge=0, description="P")
    error_set: ErrorSet = "all"
    returns: Returns = "none"
    outcome: OutcomeSource = Field(
        "verifier", description="`critic`: GenORM, the share of critiques that say Yes in place of the verifier"
    )
    format_weight: float = Field(0.0, ge=0, description="reward of a response in which `format_pattern` is found")
    format_pattern: str = Field(r"\boxed\{", description="regular expression")
    overlong_tokens: int = Field(
        0, ge=0, description="tokens before the limit on which a response is punished for its length; 0: off"
    )
    overlong_weight: float = Field(1.0, ge=0, description="punishment of a response of full length")
    min_valid_critiques: int = Field(1, ge=1)
    unjudged: Literal["drop", "outcome_only"] = "drop"
    segmenter: Literal["blank_line", "line", "regex"] = "blank_line"
    segmenter_pattern: str | None = Field(None, description="regular expression of a delimiter (segmenter regex only)")
    aggregators: int = Field(1, ge=1, description="reward aggregator shards; prompts are spread over them")
    verifiers: int = Field(1, ge=1, description="child processes that verify answers, per shard")
    verify_timeout_s: float = Field(5.0, gt=0, description="seconds until a verification is killed: unverifiable")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.segmenter == "regex" and not self.segmenter_pattern:
            raise ValueError("`segmenter_pattern` must be set when `segmenter` is regex")
        if self.process_weight >= self.outcome_weight > 0:
            warnings.warn(
                f"reward.process_weight P = {self.process_weight:g} >= reward.outcome_weight C = "
                f"{self.outcome_weight:g}: tokens of a wrong but unflagged response can be worth as much as flagged "
                "tokens of a right one; in the paper P > C made responses longer and less accurate. Use P < C.",
                stacklevel=2,
            )
        return self


class Algorithm(Block):
    """From token rewards to a gradient (docs/algorithm.md sections 6 and 7)."""

    advantage: Annotated[str, *or_own(Advantage)] = "capo"
    surrogate: Annotated[str, *or_own(Surrogate)] = "clip"
    clip_low: float = Field(0.2, gt=0, le=1)
    clip_high: float = Field(0.2, gt=0)
    clip_dual: float | None = Field(
        None, gt=1, description="where the advantage is negative no token loses more than this times it; null: no bound"
    )
    aggregation: Literal["response_mean", "token_mean", "constant"] = "response_mean"
    kl_weight: float = Field(0.01, ge=0, description="beta; 0 loads no reference model")
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k3"
    kl_place: Literal["loss", "reward"] = Field(
        "loss", description="`reward`: the KL of a token lowers its advantage, before the first pass"
    )
    entropy_weight: float = Field(0.0, ge=0, description="weight of an entropy bonus; 0: none")
    refills: int = Field(
        0,
        ge=0,
        description="dynamic sampling: how often the groups of a batch in which no token has an advantage are replaced "
        "by groups of other problems",
    )
    mask_cut_off: bool = Field(
        False, description="responses that were cut off are compared with the others and not trained on"
    )
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    importance_cap: float | None = Field(
        None, gt=0, description="truncated importance correction: weight min(pi_trainer / pi_sampler, cap) per token"
    )
    max_staleness: int = Field(0, ge=0, description="policy versions that a sample may be behind; 0 is on-policy")
