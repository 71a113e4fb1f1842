"""The choices of the method: from votes to rewards, from rewards to advantages, from advantages to a loss.

What is chosen where nothing is said, and the names of choices, are of `credit`. Names of surrogates are those of
`learn`, which needs torch and is not imported; a test holds them together.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal, Self

from pydantic import model_validator

from capo_ray.config.block import MOST_PROCESSES, Block, Regex, or_own, setting
from capo_ray.credit.advantage import Advantage
from capo_ray.credit.group import CAPO, Unjudged
from capo_ray.credit.penalty import ErrorSet, Returns
from capo_ray.credit.reward import OutcomeSource
from capo_ray.credit.steps import SegmenterKind
from capo_ray.credit.vote import Vote

Surrogate = Literal["clip", "cispo", "gspo", "gspo_token"]


class Reward(Block):
    """From votes and outcomes to token rewards (docs/algorithm.md sections 4 and 5)."""

    vote: Annotated[str, *or_own(Vote)] = setting(
        "when a step counts as wrong; the table is in algorithm.md, section 4", CAPO.vote, source="CAPO"
    )
    outcome_weight: float = setting(
        "C: what a right answer is worth", CAPO.outcome_weight, unit="reward", source="CAPO, Eq. 1", ge=0
    )
    process_weight: float = setting(
        "P: what a wrong step costs each of its tokens", CAPO.process_weight, unit="reward", source="CAPO, Eq. 1", ge=0
    )
    error_set: ErrorSet = setting(
        "which of the steps found wrong pay: all, all from the first on, or the first alone",
        CAPO.error_set,
        source="CAPO; after VPPO; own",
    )
    returns: Returns = setting(
        "what a step's penalty becomes: itself, the sum of it and those after it, or the largest of them",
        CAPO.returns,
        source="PURE, arXiv 2504.15275",
    )
    outcome: OutcomeSource = setting(
        "`critic`: GenORM, the share of critiques that say Yes in place of the verifier",
        CAPO.outcome.source,
        source="GenORM, CAPO's baseline",
    )
    format_weight: float = setting(
        "reward of a response in which `format_pattern` is found",
        CAPO.outcome.format_weight,
        unit="reward",
        source="CAPO: 0.2",
        ge=0,
    )
    format_pattern: Regex = setting("regular expression, sought in the response", r"\boxed\{")
    overlong_tokens: int = setting(
        "tokens before the limit on which a response is punished for its length; 0: off",
        CAPO.outcome.overlong_tokens,
        unit="tokens",
        source="DAPO, arXiv 2503.14476, Eq. 13",
        ge=0,
    )
    overlong_weight: float = setting(
        "punishment of a response of full length",
        CAPO.outcome.overlong_weight,
        unit="reward",
        source="DAPO, arXiv 2503.14476, Eq. 13",
        ge=0,
    )
    min_valid_critiques: int = setting(
        "a response with fewer is unjudged", CAPO.min_valid_critiques, unit="critiques", ge=1
    )
    unjudged: Unjudged = setting(
        "`drop`: an unjudged response leaves its group; `outcome_only`: its whole group gets outcome rewards alone",
        CAPO.unjudged,
    )
    segmenter: SegmenterKind = setting(
        "what stands between two steps: a blank line, a line break, or `segmenter_pattern`", "blank_line", source="CAPO"
    )
    segmenter_pattern: Regex | None = setting("regular expression of a delimiter (segmenter regex only)", None)
    aggregators: int = setting(
        "reward aggregator shards; prompts are spread over them", 1, unit="actors", ge=1, le=MOST_PROCESSES
    )
    verifiers: int = setting(
        "child processes that verify answers, per shard", 1, unit="processes", ge=1, le=MOST_PROCESSES
    )
    verify_timeout_s: float = setting("seconds until a verification is killed: unverifiable", 5.0, unit="seconds", gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.segmenter == "regex" and not self.segmenter_pattern:
            raise ValueError("`segmenter_pattern` must be set when `segmenter` is regex")
        if self.segmenter != "regex" and self.segmenter_pattern is not None:
            raise ValueError(f"`segmenter_pattern` goes with `segmenter` regex, and it is {self.segmenter}")
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

    advantage: Annotated[str, *or_own(Advantage)] = setting(
        "how rewards become advantages; only those called `capo...` see step penalties; the table is in "
        "algorithm.md, section 6",
        CAPO.advantage,
        source="CAPO, Eq. 2",
    )
    surrogate: Annotated[str, *or_own(Surrogate)] = setting(
        "what is made of ratio and advantage; the table is in algorithm.md, section 7", "clip", source="CAPO"
    )
    clip_low: float = setting(
        "the ratio is clipped at 1 - this", 0.2, unit="ratio", source="PPO, arXiv 1707.06347", gt=0, le=1
    )
    clip_high: float = setting(
        "the ratio is clipped at 1 + this", 0.2, unit="ratio", source="DAPO, arXiv 2503.14476", gt=0
    )
    clip_dual: float | None = setting(
        "where the advantage is negative no token loses more than this times it; null: no bound",
        None,
        unit="ratio",
        source="arXiv 1912.09729",
        gt=1,
    )
    aggregation: Literal["response_mean", "token_mean", "constant"] = setting(
        "mean over a response's tokens, then over responses; over all tokens; or over responses x "
        "`rollout.max_response_tokens`",
        "response_mean",
        source="CAPO; DAPO; Dr.GRPO",
    )
    kl_weight: float = setting("beta; 0 loads no reference model", 0.01, unit="none", source="CAPO", ge=0)
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = setting(
        "of the KL to the reference; r = log reference - log policy: -r, r^2/2, e^r - r - 1, |r|",
        "k3",
        source="GRPO, arXiv 2402.03300",
    )
    kl_place: Literal["loss", "reward"] = setting(
        "`reward`: the KL of a token lowers its advantage, before the first pass", "loss", source="CAPO"
    )
    kl_cap: float | None = setting(
        "most KL of one token; one that is held there has no gradient of its own; null: no bound",
        10.0,
        unit="nats",
        source="as verl, TRL",
        gt=0,
    )
    kl_gradient: bool = setting(
        "let the gradient of the KL in the loss go through the ratio that weighs it, so that it is that of the reverse "
        "KL, off policy too",
        False,
        source="DeepSeek-V3.2, arXiv 2512.02556",
    )
    entropy_weight: float = setting(
        "weight of an entropy bonus; 0: none", 0.0, unit="none", source="PPO, arXiv 1707.06347", ge=0
    )
    refills: int = setting(
        "dynamic sampling: how often the groups of a batch in which no token has an advantage are "
        "replaced by groups of other problems",
        0,
        unit="times",
        source="DAPO, arXiv 2503.14476",
        ge=0,
    )
    mask_cut_off: bool = setting(
        "responses that were cut off are compared with the others and not trained on",
        CAPO.mask_cut_off,
        source="DAPO, arXiv 2503.14476",
    )
    old_logprobs: Literal["trainer", "sampler"] = setting("what the ratio is taken against", "trainer")
    importance_cap: float | None = setting(
        "truncated importance correction: weight min(pi_trainer / pi_sampler, cap) per token",
        None,
        unit="ratio",
        source="truncated importance sampling",
        gt=0,
    )
    max_staleness: int = setting(
        "policy versions that a sample may be behind; 0 is on-policy", 0, unit="policy versions", ge=0
    )
