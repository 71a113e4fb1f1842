"""Rules between the blocks of a configuration: what makes no sense together, each with its reason and a way out.

`run` calls `check` once a Config is made of blocks that are right by themselves. Leaves out a block's own rules
(they stand in the block) and what a machine can hold (see `planning`).
"""

from __future__ import annotations

import warnings
from itertools import pairwise

from capo_ray import extension
from capo_ray.config.critic import voter_field
from capo_ray.config.fields import Fields
from capo_ray.config.lora import VLLM_RANKS
from capo_ray.config.method import Reward
from capo_ray.config.sensible import unusual_rate
from capo_ray.credit.advantage import ALGORITHMS, algorithm_of
from capo_ray.credit.vote import check_weight


def check(config: Fields) -> None:
    """Raises ValueError at the first rule that is broken."""
    if said := unusual_rate(config.trainer.learning_rate):
        warnings.warn(f"trainer.{said}", stacklevel=2)
    rules = (
        _check_own,
        _check_templates,
        _check_logprobs,
        _check_objective,
        _check_batch,
        _check_credit,
        _check_weights,
    )
    for rule in (*rules, _check_budget, _check_windows, _check_cluster, _check_lora, _check_base):
        rule(config)


def _check_own(config: Fields) -> None:
    """What is a user's can be imported and used; `algorithm_of` looks at a normaliser."""
    if extension.is_own(config.algorithm.surrogate):
        extension.load(config.algorithm.surrogate, callable, is_a="a function of (Tokens, Clip) to a Surrogate")
    if extension.is_own(config.data.kind):
        extension.load(config.data.kind, lambda found: hasattr(found, "verify"), is_a="a capo_ray.tasks.registry.Task")
    for voter in config.critic.voters if config.critic else ():
        if extension.is_own(voter.kind):
            extension.load(voter.kind, callable, is_a="a class that is a capo_ray.engines.protocols.CriticEngine")
    if extension.is_own(config.reward.vote):
        check_weight(config.reward.vote, config.critic.critiques if config.critic else 1)


def _check_templates(config: Fields) -> None:
    """A template without the messages makes every prompt the same."""
    models = {"policy": config.policy}
    for number, voter in enumerate(config.critic.voters if config.critic else ()):
        models |= {f"{voter_field(number)}.model": voter.model} if voter.model else {}
    for place, model in models.items():
        if model.chat_template is not None and "messages" not in model.chat_template:
            raise ValueError(
                f"`{place}.chat_template` must be a Jinja template that writes `messages`: with this one every prompt "
                "would be the same; null takes the tokenizer's own"
            )


def _check_logprobs(config: Fields) -> None:
    rollout, algorithm = config.rollout, config.algorithm
    truncated = rollout.top_p < 1 or rollout.top_k > 0
    if truncated and algorithm.old_logprobs == "sampler":
        raise ValueError(
            f"`algorithm.old_logprobs` must be trainer when the sampler is cut off (rollout.top_p {rollout.top_p:g}, "
            f"rollout.top_k {rollout.top_k}): the sampler's log-probabilities are off by the kept mass"
        )
    corrected = algorithm.old_logprobs == "sampler" or algorithm.importance_cap is not None
    if algorithm.max_staleness > 0 and not corrected and config.cluster.sharing != "turns":  # which has none
        raise ValueError(
            f"`algorithm.max_staleness` {algorithm.max_staleness} needs `algorithm.old_logprobs` sampler or an "
            "`algorithm.importance_cap`: with the trainer's log-probabilities alone stale samples look on-policy"
        )
    if algorithm.importance_cap is not None and algorithm.old_logprobs == "sampler":
        raise ValueError(
            f"`algorithm.importance_cap` {algorithm.importance_cap:g} bounds old log-probabilities over the sampler's, "
            "and with `algorithm.old_logprobs` sampler they are the same; leave one of the two out"
        )
    if rollout.temperature == 0:
        raise ValueError("`rollout.temperature` must be > 0 for training: a group of equal responses teaches nothing")


def _check_objective(config: Fields) -> None:
    algorithm = config.algorithm
    if algorithm.surrogate == "gspo" and algorithm_of(algorithm.advantage).step_penalties:
        raise ValueError(
            f"`algorithm.surrogate` gspo gives a response one ratio and one advantage, and advantage "
            f"{algorithm.advantage} has one per token; use gspo_token"
        )
    kl_in_loss = bool(algorithm.kl_weight) and algorithm.kl_place == "loss"
    if algorithm.kl_estimator == "k1" and kl_in_loss and not algorithm.kl_gradient:
        raise ValueError(
            "`algorithm.kl_estimator` k1 has a gradient of 0 on average, so it does nothing in the loss; set "
            "algorithm.kl_place=reward, or use k2 or k3"
        )
    if algorithm.kl_gradient and not kl_in_loss:
        raise ValueError(
            "`algorithm.kl_gradient` is of the ratio that weighs the KL in the loss, and there is none: "
            f"algorithm.kl_weight is {algorithm.kl_weight:g}, algorithm.kl_place {algorithm.kl_place}; leave it out"
        )
    if algorithm.refills and algorithm_of(algorithm.advantage).over_batch:
        raise ValueError(
            f"`algorithm.refills` {algorithm.refills} replaces groups that teach nothing by themselves, and advantage "
            f"{algorithm.advantage} compares over the whole batch, where every group teaches; set refills to 0, or use "
            "an advantage that compares within the group"
        )
    if algorithm.clip_dual is not None and algorithm.surrogate == "cispo":
        raise ValueError("`algorithm.clip_dual` has no meaning with surrogate cispo, which clips no token's loss")


def _check_batch(config: Fields) -> None:
    responses = config.prompts_per_step * config.responses_per_prompt
    per_update = config.trainer.responses_per_update
    if per_update is not None and responses % per_update:
        raise ValueError(
            f"`trainer.responses_per_update` {per_update} must divide the {responses} responses of a step "
            f"(prompts_per_step {config.prompts_per_step} x responses_per_prompt {config.responses_per_prompt})"
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if config.trainer.tokens_per_micro_batch < longest:
        raise ValueError(
            f"`trainer.tokens_per_micro_batch` {config.trainer.tokens_per_micro_batch} must hold one sequence: "
            f"data.max_prompt_tokens + rollout.max_response_tokens = {longest}"
        )


def _check_credit(config: Fields) -> None:
    advantage, reward = config.algorithm.advantage, config.reward
    pays = algorithm_of(advantage).step_penalties
    if config.critic is None and pays:
        raise ValueError(
            f"`algorithm.advantage` {advantage} needs a `critic`: without critiques it has no process rewards; "
            "set `critic`, or use advantage grpo"
        )
    if config.critic is None and reward.outcome == "critic":
        raise ValueError("`reward.outcome` critic needs a `critic`: it is the critic's Yes or No that is paid")
    if reward.outcome == "critic" and reward.unjudged == "outcome_only":
        raise ValueError(
            "`reward.unjudged` outcome_only has nothing to fall back on where `reward.outcome` is critic; use drop"
        )
    if config.critic is not None and reward.outcome == "critic" and config.critic.on_outage == "outcome_only":
        raise ValueError(
            "`critic.on_outage` outcome_only has nothing to fall back on where `reward.outcome` is critic; use wait"
        )
    for voter in config.critic.voters if config.critic else ():
        if voter.kind == "truth" and config.data.kind != "arithmetic":
            raise ValueError(
                "`critic.kind` truth is for data.kind arithmetic, whose steps can be checked, and data.kind is "
                f"{config.data.kind}; critic=placebo, which flags at random, takes any data"
            )
    if config.critic is not None and config.critic.adaptive and reward.outcome == "critic":
        raise ValueError(
            "`critic.adaptive` stops when the steps are decided, and `reward.outcome` critic pays the Yes or No of all "
            "critiques; use one of the two"
        )
    if config.critic is None:
        return
    if config.reward.vote == "greedy" and (config.critic.critiques != 1 or config.critic.temperature != 0):
        raise ValueError(
            "`reward.vote` greedy needs critic.critiques 1 and critic.temperature 0, got "
            f"{config.critic.critiques} and {config.critic.temperature:g}"
        )
    if config.reward.min_valid_critiques > config.critic.critiques:
        raise ValueError(
            f"`reward.min_valid_critiques` {config.reward.min_valid_critiques} can never be reached with "
            f"critic.critiques {config.critic.critiques}"
        )


def _check_weights(config: Fields) -> None:
    """What is paid for, and what shapes that."""
    advantage, reward = config.algorithm.advantage, config.reward
    pays = algorithm_of(advantage).step_penalties
    steps_pay, length_pays = pays and reward.process_weight, reward.overlong_tokens and reward.overlong_weight
    if not any((reward.outcome_weight, steps_pay, reward.format_weight, length_pays)):
        raise ValueError(
            f"`reward.outcome_weight` is 0, and so is every other weight that `algorithm.advantage` {advantage} looks "
            "at: nothing can be learnt; set one above 0"
        )
    usual = Reward.model_fields["process_weight"].default
    if advantage == "capo_channels" and reward.process_weight not in (0, usual):
        raise ValueError(
            f"`reward.process_weight` {reward.process_weight:g} would change nothing: `algorithm.advantage` "
            f"capo_channels divides penalties by their own spread; leave it at {usual:g}, or at 0 to leave them out, "
            "or use advantage capo"
        )
    if not pays and (reward.error_set, reward.returns) != ("all", "none"):
        paying = ", ".join(name for name, made in ALGORITHMS.items() if made.step_penalties)
        raise ValueError(
            f"`reward.error_set` {reward.error_set} and `reward.returns` {reward.returns} shape step penalties, and "
            f"`algorithm.advantage` {advantage} has none; use one of {paying}"
        )
    if reward.overlong_tokens > config.rollout.max_response_tokens:
        raise ValueError(
            f"`reward.overlong_tokens` {reward.overlong_tokens} must be at most rollout.max_response_tokens "
            f"{config.rollout.max_response_tokens}"
        )


def _check_budget(config: Fields) -> None:
    critic = config.critic
    if critic is None or critic.tokens_per_step is None:
        return
    if config.reward.outcome == "critic":
        raise ValueError(
            "`critic.tokens_per_step` leaves groups unjudged, and `reward.outcome` critic has nothing to pay them by; "
            "use one of the two"
        )
    group = config.responses_per_prompt * critic.critiques * critic.max_critique_tokens
    if critic.tokens_per_step < group:
        raise ValueError(
            f"`critic.tokens_per_step` {critic.tokens_per_step} must hold one group: responses_per_prompt "
            f"{config.responses_per_prompt} x critic.critiques {critic.critiques} x critic.max_critique_tokens "
            f"{critic.max_critique_tokens} = {group}, what it is taken to cost before any was judged; raise it, or ask "
            "for fewer or shorter critiques"
        )


def _check_windows(config: Fields) -> None:
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if config.policy.shape is not None and longest > config.policy.shape.window:
        raise ValueError(
            f"the policy's window of {config.policy.shape.window} tokens cannot hold data.max_prompt_tokens "
            f"{config.data.max_prompt_tokens} + rollout.max_response_tokens {config.rollout.max_response_tokens}; "
            "lower one"
        )
    if config.critic is None:
        return
    needed = longest + config.critic.max_critique_tokens
    for n, voter in enumerate(config.critic.voters):
        own = config.policy.shape.window if voter.kind == "base" and config.policy.shape else None
        window = voter.known_window or own
        if window and needed > window:
            raise ValueError(
                f"the critic's window of {window} tokens cannot hold a question and a response ({longest}) "
                f"and critic.max_critique_tokens {config.critic.max_critique_tokens}; lower one or set a larger "
                f"{voter_field(n)}.window"
            )


def _check_cluster(config: Fields) -> None:
    cluster = config.cluster
    if cluster.sharing == "turns":
        _check_turns(config)
    if cluster.sharing == "pairs" and cluster.device == "cpu":
        raise ValueError(
            "`cluster.sharing` pairs is about GPUs, and on cluster.device cpu there are none to share; use apart"
        )
    rollout, ranks = config.rollout, config.trainer.ranks
    shared = cluster.device == "gpu" and cluster.sharing != "apart"
    if shared and rollout.workers * rollout.tensor_parallel != ranks:
        raise ValueError(
            f"`cluster.sharing` {cluster.sharing} puts each rollout worker on the GPUs of trainer ranks, and there are "
            f"{rollout.workers} workers of {rollout.tensor_parallel} GPUs and {ranks} ranks: let rollout.workers x "
            "rollout.tensor_parallel be trainer.ranks, or set cluster.sharing=apart"
        )


def _check_turns(config: Fields) -> None:
    """All roles on all GPUs, one after the other."""
    if config.algorithm.max_staleness:
        raise ValueError(
            f"`algorithm.max_staleness` {config.algorithm.max_staleness} samples while the policy learns, and with "
            "`cluster.sharing` turns nobody samples then; set it to 0, or use apart or pairs"
        )
    judging = [voter for voter in (config.critic.voters if config.critic else ()) if voter.kind == "vllm"]
    if config.cluster.device == "cpu" or not judging:
        return
    for few, more in pairwise(sorted({config.rollout.tensor_parallel, *(voter.tensor_parallel for voter in judging)})):
        if more % few:
            raise ValueError(
                f"`tensor_parallel` {few} and {more}: with `cluster.sharing` turns rollout workers and critics share "
                "GPUs, and an engine must lie within those of a larger one; choose numbers that divide one another"
            )
    gpus, ranks = sum(voter.workers * voter.tensor_parallel for voter in judging), config.trainer.ranks
    if gpus > ranks:
        raise ValueError(
            f"`critic.workers`: with `cluster.sharing` turns critics of {gpus} GPUs together would share those of "
            f"{ranks} trainer ranks; lower critic.workers or critic.tensor_parallel, or raise trainer.ranks and "
            "rollout.workers"
        )


def _check_lora(config: Fields) -> None:
    lora = config.trainer.lora
    if lora is not None and lora.dropout:
        raise ValueError(
            f"`trainer.lora.dropout` {lora.dropout:g} is for supervised training: in a run two passes over the same "
            "tokens must agree, or the ratio to the old policy is noise; leave it out"
        )
    if lora is not None and config.cluster.lora_sync == "adapter" and lora.rank > VLLM_RANKS[-1]:
        raise ValueError(
            f"`trainer.lora.rank` {lora.rank} is more than vLLM holds as an adapter ({VLLM_RANKS[-1]}): lower it, or "
            "set cluster.lora_sync=merged"
        )


def _check_base(config: Fields) -> None:
    """A critic on the engines that sample, which hold its weights beneath an adapter and sleep with them."""
    kinds = [voter.kind for voter in config.critic.voters] if config.critic else []
    if "base" not in kinds:
        return
    if config.trainer.lora is None or config.cluster.lora_sync != "adapter" or config.cluster.sharing != "turns":
        lora = "null" if config.trainer.lora is None else "set"
        raise ValueError(
            "`critic.kind` base is the model that an adapter leaves as it is, on engines that sample and judge in "
            "turns: it wants trainer.lora, cluster.lora_sync adapter and cluster.sharing turns, and they are "
            f"{lora}, {config.cluster.lora_sync} and {config.cluster.sharing}; or take the same model by kind vllm"
        )
    if kinds.count("base") > 1 or "vllm" in kinds:
        raise ValueError(
            "`critic.kind` base is one critic, and its engines judge alone: beside it `critic.others` may have those "
            "of kind http and the like, and none of kind base or vllm"
        )
