"""What a run does while no critic is up: waits, or goes on without critiques; and that it recovers. A virtual clock."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from asked import asked_with
from virtual_time import now, play

from capo_ray.credit.critique import Reference, render_reply
from capo_ray.critics.service import Critics, CriticsFailed, Voter
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.types import Critique, Metrics, Sampling


@dataclass
class Engine:
    """Is down between `down` and `up`, and otherwise answers after a second."""

    name: str = "a"
    down: float = 0.0
    up: float = 0.0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        await asyncio.sleep(0.01)
        if self.down <= now() < self.up:
            raise ConnectionError("gone")
        await asyncio.sleep(1)
        completion = Completion(text=render_reply([0]), truncated=False, num_tokens=10)
        return Replies(completions=(completion,) * n, prompt_tokens=10, cached_tokens=0)

    def metrics(self) -> Metrics:
        return {}


async def batch(service: Critics, count: int = 64) -> list[tuple[Critique, ...]]:
    requests = [
        service.judge("?", Reference("none"), ["a"], response_key=str(seed), seed=10 * seed) for seed in range(count)
    ]
    return await asyncio.gather(*requests)


def outcomes(answers: Sequence[Sequence[Critique]]) -> Counter[str]:
    return Counter(critique.outcome for critiques in answers for critique in critiques)


def test_waiting_ends_with_the_outage() -> None:
    async def scene() -> None:
        answers = await batch(Critics([Engine(up=1000.0)], asked_with(on_outage="wait")))
        assert outcomes(answers) == {"ok": 256}
        assert 1000 < now() < 1040

    play(scene())


def test_waiting_has_an_end() -> None:
    async def scene() -> None:
        with pytest.raises(CriticsFailed) as caught:
            await batch(Critics([Engine(up=1e9)], asked_with(on_outage="wait")))
        assert str(caught.value) == (
            "every critic has been down for 3600 s (critic.outage_limit_s). Last: a: ConnectionError: gone"
        )
        assert 3600 < now() < 3640

    play(scene())


def test_going_without_until_one_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """What was given up is nobody's failure; both outages are told, once each."""

    async def scene() -> None:
        engine = Engine(up=500.0)
        service = Critics([engine], asked_with(on_outage="outcome_only", outage_s=60))
        assert outcomes(await batch(service)) == {"cancelled": 256}
        assert 60 < now() < 95
        assert outcomes(await batch(service)) == {"cancelled": 256}
        assert now() < 100
        await asyncio.sleep(500)
        assert outcomes(await batch(service)) == {"ok": 256}
        engine.down, engine.up = now(), now() + 500
        assert outcomes(await batch(service)) == {"cancelled": 256}
        assert service.metrics()["engines_down"] == 1

    play(scene())
    told = [record.message for record in caplog.records if "goes on without critiques" in record.message]
    assert (
        told
        == [
            "every critic has been down for 60 s; training goes on without critiques: groups that cannot be judged get "
            "outcome rewards alone (critic.on_outage=outcome_only). Last: a: ConnectionError: gone"
        ]
        * 2
    )


def test_the_other_critic_still_votes() -> None:
    async def scene() -> None:
        other = Voter(engines=[Engine("b")])
        service = Critics([Engine("a", up=1e9)], asked_with(on_outage="outcome_only"), others=[other])
        for critiques in await batch(service):
            assert [critique.outcome for critique in critiques] == ["cancelled", "ok"] * 2
            assert [critique.critic for critique in critiques][1::2] == ["b", "b"]
            assert critiques[1].seed + 1 == critiques[3].seed  # each critic counts its own

    play(scene())


def test_each_critic_that_is_away_is_told_once_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """And that all are, when the last one is."""

    async def scene() -> None:
        last = Engine("b", down=1000.0, up=1e9)
        settings = asked_with(on_outage="outcome_only", outage_s=60)
        service = Critics([Engine("a", up=1e9)], settings, others=[Voter(engines=[last])])
        for _ in range(20):
            await batch(service, 4)
        await asyncio.sleep(1100)
        assert outcomes(await batch(service)) == {"cancelled": 256}

    play(scene())
    told = [record.message for record in caplog.records if "critic.on_outage" in record.message]
    assert told == [
        "critic 1 of 2 (a) has been down for 60 s; its share of the votes is missing while others are up "
        "(critic.on_outage=outcome_only). Last: a: ConnectionError: gone",
        "every critic has been down for 60 s; training goes on without critiques: groups that cannot be judged get "
        "outcome rewards alone (critic.on_outage=outcome_only). Last: b: ConnectionError: gone",
    ]


def test_a_run_that_waits_says_which_critic_it_waited_for_and_ends_what_the_others_do() -> None:
    async def scene() -> None:
        busy = Slow("b")
        settings = asked_with(on_outage="wait", outage_limit_s=100)
        service = Critics([Engine("a", up=1e9)], settings, others=[Voter(engines=[busy])])
        with pytest.raises(CriticsFailed) as caught:
            await batch(service, 4)
        assert str(caught.value) == (
            "critic 1 of 2 (a) has been down for 100 s (critic.outage_limit_s), and critic.on_outage=wait waits for "
            "each critic. Last: a: ConnectionError: gone"
        )
        await asyncio.sleep(1)
        assert now() < 200 and busy.in_flight == 0

    play(scene())


@dataclass
class Slow(Engine):
    in_flight: int = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        self.in_flight += 1
        try:
            await asyncio.sleep(1e9)
        finally:
            self.in_flight -= 1
        return await super().complete(messages, sampling, n=n, seed=seed)
