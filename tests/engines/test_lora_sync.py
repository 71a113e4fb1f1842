"""A trainer with an adapter and real engines of vLLM: after a sync of either kind both have the same log-probabilities.

The adapter's rank is none of vLLM's, embeddings are tied in float32 and apart in bfloat16, and what is sent is of one
that other ranks at another ZeRO stage go on from.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from engines.test_vllm import PROMPT, make_model, sample
from engines.trainer_ranks import Case, Ranks, batch_of, engine_of, sequences

from capo_ray.config import blocks
from capo_ray.config.lora import VLLM_RANKS, held_rank
from capo_ray.types import Rollout, TrainSequence

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_environment")]

TOKENIZER = Path(__file__).parents[2] / "capo_ray" / "assets" / "tiny_policy"
RANK = 5
LORA = {"rank": RANK, "alpha": 7}
TEMPERATURE = 0.6
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True, kw_only=True)
class Way:
    sends: str
    dtype: str
    engines: int

    @property
    def tied(self) -> bool:
        return self.dtype == "float32"


WAYS = [
    Way(sends="merged", dtype="float32", engines=1),
    Way(sends="adapter", dtype="float32", engines=2),
    Way(sends="merged", dtype="bfloat16", engines=1),
    Way(sends="adapter", dtype="bfloat16", engines=1),
]
"""Merged ones travel as whole weights do, which tests/e2e sends to several."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    way: Way
    loop: asyncio.AbstractEventLoop
    engines: list[Any]
    base: Path
    case: Case


def taught(rank: int, ranks: int, case: Case, sends: str, folder: str) -> None:
    """After some updates that change much: a checkpoint, and what is sent."""
    with engine_of(case, rank, ranks) as engine:
        for _ in range(3):
            engine.update(batch_of(case, rank, ranks))
        engine.save(f"{folder}/checkpoint")
        sent(engine, sends, f"{folder}/first")


def sent(engine: Any, sends: str, file: str) -> None:
    from safetensors.torch import save_file

    engine._outgoing._sends = sends
    weights = dict(engine.weights())
    if engine.rank == 0:
        save_file(weights, file)


def gone_on(rank: int, ranks: int, case: Case, sends: str, folder: str) -> None:
    with engine_of(case, rank, ranks) as engine:
        engine.restore(f"{folder}/checkpoint")
        sent(engine, sends, f"{folder}/again")


def scored(rank: int, ranks: int, case: Case, folder: str, rollouts: list[Rollout]) -> Any:
    """By the trainer that goes on from the checkpoint, and by its reference."""
    import torch

    made = [
        TrainSequence(
            prompt_ids=PROMPT.token_ids,
            token_ids=r.token_ids,
            advantages=(0.0,) * len(r.token_ids),
            logprobs=r.logprobs,
        )
        for r in rollouts
    ]
    with engine_of(case, rank, ranks) as engine, torch.no_grad():
        engine.restore(f"{folder}/checkpoint")
        batch = engine._collate(made, 1.0)
        return [scorer(batch, TEMPERATURE)[0].float().numpy() for scorer in (engine._engine, engine._reference)]


@pytest.fixture(
    params=[
        pytest.param(way, id=f"{way.sends}-{way.dtype}", marks=[pytest.mark.long] if way.dtype == "bfloat16" else [])
        for way in WAYS
    ]
)
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    from capo_ray.engines.rollout_vllm import VllmRollout
    from capo_ray.engines.vllm_settings import VllmSettings

    way: Way = request.param
    base = make_model(tmp_path / "base", TOKENIZER, tied=way.tied, seed=1)
    settings = VllmSettings(
        block=blocks.Rollout(max_response_tokens=24, eager=True),
        model=str(base),
        tokenizer=str(base),
        dtype=way.dtype,
        window=None,
        device="cpu",
        weight_transfer="capo_shm",
        lora_rank=RANK if way.sends == "adapter" else None,
    )
    loop = asyncio.new_event_loop()

    async def start() -> list[Any]:
        return [VllmRollout(settings, name=f"rollout-{number}") for number in range(way.engines)]

    engines = loop.run_until_complete(start())
    case = Case(
        model=str(base),
        stage=0,
        dtype=way.dtype,
        temperature=TEMPERATURE,
        sequences=sequences(9, scale=3.0),
        trainer={"optimisation_passes": 2, "lora": LORA, "learning_rate": 3e-2},
        algorithm={"kl_weight": 0.01},
    )
    yield Setting(way=way, loop=loop, engines=engines, base=base, case=case)

    async def close() -> None:
        for engine in engines:
            engine.close()

    loop.run_until_complete(close())
    loop.close()


def send(setting: Setting, file: str, version: int) -> str:
    """To all engines; the checksum that each has confirmed."""
    from safetensors.torch import load_file

    from capo_ray.engines.receivers import Receivers
    from capo_ray.engines.weights_shm import ShmSender

    def asks(engine: Any) -> Any:
        def ask(stage: Any, given: dict[str, Any]) -> "Future[Any]":
            return asyncio.run_coroutine_threadsafe(engine.take_weights(stage, given), setting.loop)

        return ask

    async def sync() -> str:
        receivers = Receivers({engine.name: asks(engine) for engine in setting.engines}, gpus_each=1)
        sender = await asyncio.to_thread(ShmSender, receivers)
        return await asyncio.to_thread(sender.send, load_file(file).items(), version)

    return setting.loop.run_until_complete(sync())


def gap(rollouts: list[Rollout], logprobs: Any) -> float:
    sampled = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    return max(abs(float(one) - other) for one, other in zip(logprobs, sampled, strict=True))


def test_a_sync_of_either_kind_gives_engines_the_trainers_own_log_probabilities(
    setting: Setting, by_count: dict[int, Ranks], tmp_path: Path
) -> None:
    way, case, folder = setting.way, setting.case, str(tmp_path)
    by_count[1](taught, case, way.sends, folder)
    by_count[2](gone_on, case.but(stage=3), way.sends, folder)
    first = send(setting, f"{folder}/first", 1)
    before = [sample(engine, setting.loop, temperature=TEMPERATURE) for engine in setting.engines]
    assert send(setting, f"{folder}/again", 2) == first, "whoever goes on sends the same"
    after = [sample(engine, setting.loop, temperature=TEMPERATURE) for engine in setting.engines]
    for one, then in zip(before, after, strict=True):
        assert [r.token_ids for r in one] == [r.token_ids for r in then] == [r.token_ids for r in before[0]]
        assert {r.versions for r in one} == {(1,)} and {r.versions for r in then} == {(2,)}
        trained, reference = by_count[2](scored, case.but(stage=3), folder, then)
        assert gap(then, trained) < TOLERANCE[way.dtype]
        assert gap(then, reference) > 0.5  # without the adapter it is another model


def test_an_adapter_at_a_layer_that_takes_none_is_refused() -> None:
    import torch

    from capo_ray.engines.weights_adapter import take_up

    class Adapters:
        model, modules = torch.nn.Linear(1, 1), {"model.a": None}

        def remove_adapter(self, _: int) -> None: ...

        add_adapter = activate_adapter = remove_adapter

    manager: Any = type("Manager", (), {"_adapter_manager": Adapters(), "lora_config": None})()
    manager.lora_config = type("Config", (), {"lora_dtype": torch.float32})()
    there = {f"base_model.model.model.a.lora_{kind}.weight": torch.ones(2, 2) for kind in "AB"}
    take_up(manager, there)
    more = {name.replace("model.a.", "model.b."): tensor for name, tensor in there.items()}
    with pytest.raises(ValueError, match=r"takes no adapter at 1 of the layers that learn, the first is model\.b: set"):
        take_up(manager, there | more)


def test_ranks_of_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == VLLM_RANKS
    assert [held_rank(rank) for rank in (1, 2, 8, 9, 33, 512)] == [1, 8, 8, 16, 64, 512]
