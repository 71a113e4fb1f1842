"""One engine of vLLM that samples with an adapter and judges without it: each as one that does nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from engines.test_vllm import make_model
from engines.test_vllm_sleep import running, settings_of, synced

from capo_ray.config.blocks import Rollout as RolloutBlock
from capo_ray.config.critic import Voter
from capo_ray.config.model import Model
from capo_ray.engines.protocols import WHOLE, NotItsTurn, Replies
from capo_ray.engines.sleeper import Sleeper
from capo_ray.types import Prompt, Rollout, Sampling

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_environment")]

TOKENIZER = Path(__file__).parents[2] / "capo_ray" / "assets" / "tiny_policy"
RANK = 8
AS_IT_IS = "{{ messages[0]['content'] }}"
CONTENT = "Start with 17. Add 5. Multiply by 3. Take away 4. " * 3
SAMPLING = Sampling(max_tokens=8)


def adapter(folder: Path, base: Path, seed: int) -> str:
    """Large, at every linear layer of `base`."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("proj.weight"):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            made[f"{at}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=draw)
            made[f"{at}.lora_B.weight"] = 0.1 * torch.randn(weight.shape[0], RANK, generator=draw)
    folder.mkdir()
    save_file(made, folder / "model.safetensors")
    return str(folder)


def test_an_engine_judges_with_its_base_as_a_critic_of_its_own_does_and_samples_as_before(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from capo_ray.engines.critic_vllm import VllmCritic
    from capo_ray.engines.rollout_vllm import VllmRollout

    base = make_model(tmp_path / "base", TOKENIZER, tied=True, seed=1)
    adapters = [adapter(tmp_path / f"adapter-{seed}", base, seed) for seed in (1, 2)]
    token_ids = tuple(AutoTokenizer.from_pretrained(base)(CONTENT, add_special_tokens=False)["input_ids"])
    assert 64 < len(token_ids) < 140, "blocks of 32 are cached, and the window is 160"
    prompt = Prompt(id="p", question="q", token_ids=token_ids, answer="1")

    async def sampled(engine: Sleeper) -> Rollout:
        (rollout,) = [one async for one in engine.generate(prompt, SAMPLING, {0: 1})]
        return rollout

    async def judged(engine: Sleeper, n: int = 3) -> Replies:
        return await engine.complete([{"role": "user", "content": CONTENT}], SAMPLING, n=n, seed=1)

    def critic() -> Sleeper:
        block = Voter(kind="vllm", model=Model(path=str(base)), eager=True)
        settings = replace(settings_of(str(base), block, chat_template=AS_IT_IS), window=None)
        return Sleeper(partial(VllmCritic, settings, name="critic-0"), "critic-0")

    def rollout() -> Sleeper:
        block, told = RolloutBlock(max_response_tokens=24, eager=True), {"weight_transfer": "capo_shm"}
        settings = settings_of(str(base), block, lora_rank=RANK, judges=True, chat_template=AS_IT_IS, **told)
        return Sleeper(partial(VllmRollout, replace(settings, window=None), name="rollout-0"), "rollout-0")

    with running(alone := critic()) as call:
        call(alone.open())
        critiques = call(judged(alone)).completions
    with running(both := rollout()) as call:
        assert both.judging() == {"busy_s": 0.0}
        call(both.open())
        call(synced(both, adapters[0], 1))
        first = call(sampled(both))
        replies = call(judged(both, n=1))  # of several all but the first find the prompt in the cache
        assert replies.completions == critiques[:1]
        assert replies.cached_tokens == 0, "what was cached with the adapter is of no use without it"
        replies = call(judged(both))
        assert replies.completions == critiques and replies.cached_tokens > 0
        sample = call(sampled(both))
        assert sample.token_ids == first.token_ids and sample.logprobs == pytest.approx(first.logprobs, abs=1e-5)
        call(synced(both, adapters[1], 2))
        assert call(judged(both)).completions == critiques
        assert call(sampled(both)).token_ids != first.token_ids
        assert both.judging()["generated_tokens"] == critiques[0].num_tokens + 2 * sum(c.num_tokens for c in critiques)
        call(both.sleep())
        with pytest.raises(NotItsTurn):
            call(judged(both))
        call(both.wake(WHOLE))
        assert call(judged(both)).completions == critiques
        call(synced(both, adapters[0], 3))
        assert call(sampled(both)).token_ids == first.token_ids
