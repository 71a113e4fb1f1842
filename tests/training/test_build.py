"""The factories of actors, which may run on another machine than the one that made them."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.cluster.turns import start_all
from capo_ray.config.compose import compose
from capo_ray.config.critic import Voter
from capo_ray.config.fault import ConfigError
from capo_ray.credit.template import shipped
from capo_ray.training.build import make_aggregator, make_critic, make_rollout, make_trainer
from capo_ray.training.build_critics import critics_without_actors, make_critics
from capo_ray.training.settings import critic_engine_settings, rollout_settings

CONFIG = compose(["+experiment=tiny_cpu"])
JUDGE = Voter(model=CONFIG.policy)
ELSEWHERE: Any = SimpleNamespace(folder="/elsewhere/model", tokenizer="/elsewhere/model")


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_rollout(rollout_settings(CONFIG, ELSEWHERE), "rollout-0"),
        lambda: make_critic(critic_engine_settings(CONFIG, JUDGE, ELSEWHERE), "critic-0"),
        lambda: make_trainer(CONFIG, "/elsewhere/model", rank=0, host="h", port=1),
        lambda: make_aggregator(
            CONFIG, None, [], Path("/elsewhere/model/samples"), shard=0, put=lambda payload: payload
        ),
    ],
    ids=["rollout", "critic", "trainer", "aggregator"],
)
def test_a_node_that_does_not_see_the_storage_says_so(make: Callable[[], Any]) -> None:
    told = (
        "does not see /elsewhere/model: put run_dir and models on storage that every node mounts at the same path, for"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(told)):
        make()


@pytest.mark.parametrize(("sharing", "order"), [("pairs", ["engines", "ranks"]), ("apart", ["ranks", "engines"])])
def test_ranks_that_share_gpus_with_engines_load_after_them(sharing: str, order: list[str]) -> None:
    ended: list[str] = []

    class Engines:
        async def ready(self) -> None:
            await asyncio.sleep(0.01)
            ended.append("engines")

    class Trainers:
        async def start(self) -> None:
            ended.append("ranks")

    config = SimpleNamespace(cluster=SimpleNamespace(sharing=sharing))
    asyncio.run(start_all(config, Engines(), Trainers()))  # type: ignore[arg-type]
    assert ended == order


def test_engines_that_sample_judge_where_the_critic_is_the_base() -> None:
    """With the policy's own chat template and window; the critic's model is theirs, whatever it is."""
    given = ["+experiment=tiny_cpu", "cluster.sharing=turns", "trainer.lora.rank=8", "rollout.workers=2"]
    config = compose([*given, "critic=base", "critic.window=3000", "policy.chat_template='{{ messages }}'"])
    files: Any = SimpleNamespace(folder="policy", tokenizer="tokenizer")
    settings = rollout_settings(config, files)
    assert (settings.judges, settings.window, settings.chat_template) == (True, 3000, "{{ messages }}")
    plain = rollout_settings(compose(given), files)
    assert (plain.judges, plain.window, plain.chat_template) == (False, 128, None)
    workers = [(f"rollout-{number}", SimpleNamespace()) for number in range(2)]
    service = make_critics(config, shipped("brief"), workers)
    assert service is not None and config.critic is not None
    assert [member.engine.name for line in service._lines for member in line.pool.members] == ["rollout-0", "rollout-1"]
    with pytest.raises(ConfigError, match="base judges in a run, on its engines"):
        critics_without_actors(config.critic)
