"""A setting is written once: what rooms without configuration take has the block's names, and nothing is left over."""

import pickle
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import pytest

from capo_ray.config.block import Block
from capo_ray.config.blocks import Rollout
from capo_ray.config.critic import Critic, Voter
from capo_ray.config.method import Algorithm, Reward, Surrogate
from capo_ray.config.model import Model
from capo_ray.credit.group import Scheme
from capo_ray.credit.reward import Outcome
from capo_ray.critics.settings import CriticSettings
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.learn.loss import Objective
from capo_ray.learn.surrogate import SURROGATES

ELSEWHERE = {
    Critic: {
        **dict.fromkeys(Voter.model_fields.keys() - {"max_sequences"}, "the engines"),
        "others": "each makes a critics.service.Voter",
        "tokens_per_step": "critics.budget",
        "template": "found and read before: CriticSettings.template is the template itself",
        "reference": "who shows it: the aggregator",
        "max_failed_share": "critics.failures",
        "failure_prompts": "critics.failures",
        "canaries": "critics.canaries",
    },
    Reward: {
        "outcome": "Outcome.source",
        "format_pattern": "Outcome.format_pattern, compiled",
        "segmenter": "credit.steps",
        "segmenter_pattern": "credit.steps",
        "aggregators": "the plan",
        "verifiers": "tasks.registry",
        "verify_timeout_s": "tasks.registry",
    },
    Algorithm: {
        **dict.fromkeys(("clip_low", "clip_high", "clip_dual"), "Objective.bounds"),
        "aggregation": "cluster.trainer_group",
        "refills": "cluster.crew",
        "old_logprobs": "the trainer",
        "max_staleness": "training.driver",
    },
}
"""Block -> field -> who else gets it: all that no dataclass takes by its name."""
TAKEN: list[tuple[type[Any], tuple[type[Block], ...], set[str]]] = [
    (CriticSettings, (Critic, Reward), {"template", "cache_seed"}),
    (Outcome, (Reward,), {"source", "format_pattern", "max_response_tokens"}),
    (Scheme, (Reward, Algorithm), {"outcome"}),
    (Objective, (Algorithm,), {"bounds"}),
]
"""A dataclass, the blocks that it is filled from, and what is made for it beside them."""
OWN_DEFAULT = {"kl_weight": "an Objective by itself has no reference model"}


def names_of(kinds: Iterable[type[Any]]) -> set[str]:
    return {field.name for kind in kinds for field in fields(kind)}


@pytest.mark.parametrize("block", ELSEWHERE, ids=lambda block: block.__name__)
def test_every_setting_is_taken_or_meant_for_somebody_else(block: type[Block]) -> None:
    made = {name for _, _, own in TAKEN for name in own}
    taken = names_of(kind for kind, blocks, _ in TAKEN if block in blocks) - made
    left = block.model_fields.keys() - taken
    assert left - ELSEWHERE[block].keys() == set(), "reach nobody"
    assert ELSEWHERE[block].keys() - left == set(), "said to be taken elsewhere"


@pytest.mark.parametrize(("kind", "blocks", "own"), TAKEN, ids=lambda given: getattr(given, "__name__", None))
def test_what_is_taken_has_the_type_of_its_one_block_and_no_other_default(
    kind: type[Any], blocks: tuple[type[Block], ...], own: set[str]
) -> None:
    hints = get_type_hints(kind)
    taken = [field for field in fields(kind) if field.name not in own]
    places = {field.name: [block for block in blocks if field.name in block.model_fields] for field in taken}
    assert max(map(len, places.values())) == 1, "two blocks have a setting of one name"
    for field in taken:
        for block in places[field.name]:
            setting = block.model_fields[field.name]
            assert hints[field.name] == setting.annotation, field.name
            assert field.default in (MISSING, setting.default) or field.name in OWN_DEFAULT, field.name


def test_the_configuration_names_the_surrogates() -> None:
    assert get_args(Surrogate) == tuple(SURROGATES)


def engine(block: Rollout | Voter, **given: Any) -> VllmSettings:
    beside = {"model": "m", "tokenizer": "m", "dtype": "bfloat16", "window": None, "device": "gpu"}
    return VllmSettings(block=block, **(beside | given))


def test_engines_are_alike_whatever_they_are_asked() -> None:
    judge = Model(path="m")
    assert engine(Critic(model=judge)) == engine(Critic(model=judge, temperature=0, critiques=9)) == pickled(judge)
    assert engine(Critic(model=judge)) != engine(Critic(model=judge, eager=True))
    assert engine(Rollout(max_response_tokens=9)) == engine(Rollout(max_response_tokens=8, top_p=0.5))
    assert engine(Rollout(max_response_tokens=9)) != engine(Rollout(max_response_tokens=9, engine={"block_size": 64}))
    assert engine(Rollout(max_response_tokens=9)) != engine(Rollout(max_response_tokens=9), device="cpu")


def pickled(judge: Model) -> Any:
    return pickle.loads(pickle.dumps(engine(Voter(model=judge))))
