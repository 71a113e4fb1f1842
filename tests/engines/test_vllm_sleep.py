"""vLLM's engines that hold their memory in turns: what a sleep gives back, and what they say after it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from capo_ray.config.blocks import Rollout as RolloutBlock
from capo_ray.config.critic import Voter
from capo_ray.config.model import Model
from capo_ray.engines.protocols import WHOLE, NotItsTurn, WeightReceipt, WeightsChanged
from capo_ray.engines.sleeper import Sleeper
from capo_ray.gpu_check.shapes import write_model
from capo_ray.types import Prompt, Rollout, Sampling

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_environment")]

MIB = 1 << 20
KV_CACHE = 1024 * MIB
MODEL = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
WEIGHTS = 4 * 4 * (512 * (2 * 512 + 2 * 128) + 3 * 512 * 2048)
"""Bytes, of the layers alone."""
PROMPT = Prompt(id="p", question="q", token_ids=tuple(range(20, 60)), answer="1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [write_model(tmp_path_factory.mktemp("model") / "m", MODEL, dtype="float32", seed=seed) for seed in (1, 2)]


def settings_of(folder: str, block: Any, **more: Any) -> Any:
    from capo_ray.engines.vllm_settings import VllmSettings

    return VllmSettings(
        block=block, model=folder, tokenizer=folder, dtype="float32", window=512, device="cpu", sleeps=True, **more
    )


@contextmanager
def running(sleeper: Sleeper) -> Iterator[Any]:
    """Calls coroutines on a loop of the engine's own."""
    loop = asyncio.new_event_loop()

    def call(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(coroutine)

    async def close() -> None:
        sleeper.close()

    try:
        yield call
    finally:
        call(close())
        loop.close()


def held() -> int:
    """Bytes that the engine's processes have for themselves."""
    return sum(child.memory_full_info().uss for child in psutil.Process().children(recursive=True))


async def sampled(sleeper: Sleeper) -> Rollout:
    (rollout,) = [one async for one in sleeper.generate(PROMPT, Sampling(max_tokens=8), {0: 1})]
    return rollout


async def synced(sleeper: Sleeper, folder: str, version: int) -> WeightReceipt | None:
    for stage, given in (
        ("connect", {}),
        ("start", {}),
        ("update", {"path": str(Path(folder) / "model.safetensors")}),
        ("finish", {"version": version}),
    ):
        receipt = await sleeper.take_weights(stage, given)  # type: ignore[arg-type]
    return receipt


class GivesUp:
    """Of two sequences one is whole; the other was in flight when the engine fell asleep."""

    async def generate(self, *given: Any, **more: Any) -> Any:
        whole, part = (SimpleNamespace(token_ids=[1], finish_reason=reason) for reason in ("stop", "abort"))
        yield SimpleNamespace(outputs=[whole, part], num_cached_tokens=0)


def test_a_part_of_a_text_is_no_reply() -> None:
    from vllm import SamplingParams

    from capo_ray.engines.vllm_engine import Requests

    engine: Any = GivesUp()
    with pytest.raises(RuntimeError, match="vLLM gave a request up: abort"):
        asyncio.run(Requests(engine, max_sequences=2).run([1], SamplingParams(n=2)))


def test_a_rollout_engine_drops_its_weights_and_samples_after_a_sync_as_before(folders: list[str]) -> None:
    from capo_ray.engines.rollout_vllm import VllmRollout

    block = RolloutBlock(max_response_tokens=24, eager=True)
    settings = settings_of(folders[0], block, weight_transfer="capo_shm")
    sleeper = Sleeper(partial(VllmRollout, settings, name="rollout-0"), "rollout-0")
    with running(sleeper) as call:
        call(sleeper.pulse())
        assert not sleeper.opened and sleeper.version == -1 and sleeper.metrics() == {"busy_s": 0.0}
        with pytest.raises(NotItsTurn, match="rollout-0 has not been opened yet"):
            call(sleeper.wake(WHOLE))
        call(sleeper.open())
        with pytest.raises(NotItsTurn, match="rollout-0 has no weights yet"):
            call(sampled(sleeper))
        first = call(synced(sleeper, folders[1], 1))
        before, awake = call(sampled(sleeper)), held()

        call(sleeper.sleep())
        asleep = held()
        assert awake - asleep > 0.95 * (KV_CACHE + WEIGHTS)
        call(sleeper.pulse())
        with pytest.raises(NotItsTurn, match="rollout-0 sleeps: its turn is over, or has not come"):
            call(sampled(sleeper))

        call(sleeper.wake(WHOLE))
        with pytest.raises(NotItsTurn, match="rollout-0 has no weights yet, or has slept since they came"):
            call(sampled(sleeper))
        call(sleeper.wake(["weights"]))
        assert call(synced(sleeper, folders[1], 1)) == first
        assert held() - asleep < 0.5 * KV_CACHE
        call(sleeper.wake(WHOLE))
        assert call(sampled(sleeper)) == before


def test_a_critic_wakes_with_the_weights_that_it_had_or_is_not_asked(folders: list[str]) -> None:
    from capo_ray.engines.critic_vllm import VllmCritic

    block = Voter(kind="vllm", model=Model(path=folders[0]), eager=True)
    settings = settings_of(folders[0], block, chat_template="{{ messages[0]['content'] }}")
    sleeper = Sleeper(partial(VllmCritic, settings, name="critic-0"), "critic-0")
    ask = partial(sleeper.complete, [{"role": "user", "content": "1 + 1?"}], Sampling(max_tokens=8), n=2, seed=1)
    with running(sleeper) as call:
        call(sleeper.open())
        before, awake = call(ask()), held()
        call(sleeper.sleep())
        assert awake - held() > 0.95 * (KV_CACHE + WEIGHTS)
        with pytest.raises(NotItsTurn):
            call(ask())
        call(sleeper.wake(WHOLE))
        assert call(ask()).completions == before.completions

        call(sleeper.sleep())
        other = (Path(folders[1]) / "model.safetensors").read_bytes()
        (Path(folders[0]) / "model.safetensors").write_bytes(other)
        with pytest.raises(WeightsChanged, match="critic-0 woke with other weights than it fell asleep with"):
            call(sleeper.wake(WHOLE))
        with pytest.raises(NotItsTurn):
            call(ask())
