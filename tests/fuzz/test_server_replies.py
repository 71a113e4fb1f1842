"""Whatever a critic's server answers is completions that can be kept, or one of the errors that judging knows; never
the key, nothing that steers a terminal."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fuzz.mutate import odd_bytes, odd_json, seeds
from openai_server import critic_at
from responses import response

from capo_ray.credit.group import Member, Scheme
from capo_ray.credit.reply import parse
from capo_ray.credit.steps import steps_of
from capo_ray.engines.critic_http import HttpCritic, HttpCriticError, _Answered
from capo_ray.engines.protocols import MOST_TOKENS, EngineBusy, PromptTooLong, Replies, RequestRejected
from capo_ray.records.ledger import Ledger, read
from capo_ray.types import Critique, Prompt, Sampling

KEY = "sk-0123456789abcdef0123456789abcdef"
ANSWER: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"content": "<incorrect_steps>0</incorrect_steps>"},
        },
        {"index": 1, "finish_reason": "length", "message": {"content": [{"type": "text", "text": f"No {KEY} 😀"}]}},
    ],
    "usage": {"completion_tokens": 9, "prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}},
}
ERRORS = (EngineBusy, HttpCriticError, PromptTooLong, RequestRejected)


@pytest.fixture
def critic(monkeypatch: pytest.MonkeyPatch) -> HttpCritic:
    monkeypatch.setenv("FUZZ_KEY", KEY)
    return critic_at("http://h/v1", api_key_env="FUZZ_KEY")


def answered(critic: HttpCritic, seed: int) -> Replies | Exception:
    """What comes of an odd answer, as `_send` takes it."""
    chance = random.Random(seed)
    data = json.dumps(odd_json(ANSWER, seed), ensure_ascii=seed % 2 == 0).encode("utf-8", errors="surrogatepass")
    if seed % 4 == 0:
        data = odd_bytes(data, seed)
    text = critic._mask().masked(data.decode("utf-8", errors="replace"), whole=False)
    if seed % 5 == 0:
        headers = {
            "Retry-After": chance.choice(["1", "-1", "nan", "x", "1e999", ""]),
            "Location": f"http://x/{KEY}\x1b",
        }
        return critic._fault(_Answered(chance.choice([302, 400, 401, 413, 422, 429, 500, 503]), headers, text))
    try:
        return critic._read(text, 2)
    except ERRORS as error:
        return error


def test_odd_answers(critic: HttpCritic, tmp_path: Path) -> None:
    rollout = response("a\n\n", "b", index=0)
    steps = steps_of(rollout.text, rollout.char_ends)
    critiques: list[Critique] = []
    for seed in seeds(600):
        got = answered(critic, seed)
        if isinstance(got, Exception):
            assert isinstance(got, ERRORS), (seed, got)
            said = str(got)
            assert len(said) < 1500 and said.isprintable() and KEY not in said, (seed, said)
            if isinstance(got, EngineBusy):
                assert got.retry_after_s is None or 0 <= got.retry_after_s < float("inf"), seed
            continue
        assert 0 <= got.prompt_tokens <= MOST_TOKENS and 0 <= got.cached_tokens <= MOST_TOKENS, seed
        for completion in got.completions:
            assert KEY not in completion.text and 0 <= completion.num_tokens <= MOST_TOKENS, seed
            critiques.append(parse(completion.text, len(steps)))
    assert len(critiques) > 150
    ledger = Ledger(tmp_path, shard=0, scheme=Scheme(), sampling=Sampling(max_tokens=9))
    group = [Member(rollout=rollout, steps=steps, critiques=tuple(critiques), answer="wrong")]
    ledger.add(0, Prompt(id="p", question="", token_ids=(1,), answer=""), group)
    ledger.write(0)
    ((_, (kept,)),) = read(tmp_path)
    assert [critique.text for critique in kept.members[0].critiques] == [critique.text for critique in critiques]
