"""Settings that are given and change nothing, each with what makes them so.

What makes no sense together is refused where the rule stands (blocks, critic, method, rules). Here are settings that
are harmless and have no effect beside the others: whoever gives one on the command line is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from capo_ray.config.run import Config
from capo_ray.credit.advantage import algorithm_of

Reason = Callable[[Config], str | None]
COLUMNS = ("subset", "split", "question_field", "answer_field", "answer_boxed", "answer_pattern", "solution_field")


def _arithmetic(config: Config) -> str | None:
    return "data.kind arithmetic makes its own problems" if config.data.kind == "arithmetic" else None


def _no_held_out(config: Config) -> str | None:
    return None if config.data.evaluation_prompts else "no problem is held out (data.evaluation_prompts 0)"


def _critic(kinds: tuple[str, ...], what: str) -> Reason:
    def reason(config: Config) -> str | None:
        critic = config.critic
        return f"critic.kind {critic.kind} {what}" if critic is not None and critic.kind not in kinds else None

    return reason


def _when(test: Callable[[Config], bool], reason: str) -> Reason:
    return lambda config: reason if test(config) else None


def _no_steps(config: Config) -> str | None:
    advantage = config.algorithm.advantage
    return None if algorithm_of(advantage).step_penalties else f"algorithm.advantage {advantage} pays no steps"


_NOT_ADAPTIVE = _when(lambda c: c.critic is not None and not c.critic.adaptive, "critic.adaptive is false")
_JOINED = _when(lambda c: c.cluster.address is not None, "a cluster is joined (cluster.address)")
_NO_KL = _when(lambda c: not c.algorithm.kl_weight, "algorithm.kl_weight is 0")
_NO_WANDB = _when(lambda c: c.tracking.wandb == "off", "tracking.wandb is off")

IDLE: dict[str, Reason] = {
    **{f"data.{column}": _arithmetic for column in (*COLUMNS, "id_field", "evaluation")},
    "data.operations": _when(lambda c: c.data.kind != "arithmetic", "only data.kind arithmetic makes up problems"),
    **dict.fromkeys(("data.evaluation_responses", "evaluate_every"), _no_held_out),
    **dict.fromkeys(("critic.first_round", "critic.full_share"), _NOT_ADAPTIVE),
    "critic.flag_share": _critic(("placebo",), "flags nothing at random"),
    "critic.api_key_env": _critic(("http",), "asks no server"),
    **dict.fromkeys(("critic.kv_cache_gib", "critic.gpu_memory_share", "critic.eager"), _critic(("vllm",), "has none")),
    "critic.outage_limit_s": _when(
        lambda c: c.critic is not None and c.critic.on_outage != "wait", "critic.on_outage waits for nothing"
    ),
    "rollout.gpu_memory_share": _when(lambda c: c.cluster.device == "cpu", "cluster.device is cpu"),
    "rollout.kv_cache_gib": _when(lambda c: c.cluster.device == "gpu", "cluster.device is gpu"),
    "reward.process_weight": _no_steps,
    "reward.format_pattern": _when(lambda c: not c.reward.format_weight, "reward.format_weight is 0"),
    "reward.overlong_weight": _when(lambda c: not c.reward.overlong_tokens, "reward.overlong_tokens is 0"),
    **dict.fromkeys(("algorithm.kl_estimator", "algorithm.kl_place", "algorithm.kl_cap"), _NO_KL),
    "trainer.final_lr_share": _when(lambda c: c.trainer.schedule == "constant", "trainer.schedule is constant"),
    "cluster.lora_sync": _when(lambda c: c.trainer.lora is None, "trainer.lora is null"),
    **dict.fromkeys(("cluster.cpus", "cluster.object_store_gib", "cluster.dashboard"), _JOINED),
    **dict.fromkeys(("tracking.wandb_project", "tracking.wandb_samples"), _NO_WANDB),
}
"""Setting -> why it has no effect in this configuration; None: it has."""


def idle(config: Config, given: Iterable[str]) -> Iterator[str]:
    """A line for each of the `given` keys that changes nothing."""
    for key in given:
        if key in IDLE and (reason := IDLE[key](config)):
            yield f"{key} has no effect: {reason}"
