"""One critic's engines on a virtual clock: deadlines, load, retries, rests, outages; every scene is exact."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from asked import asked_with
from virtual_time import now, play

from capo_ray.critics import routing
from capo_ray.critics.asking import Failure, Line, Outage, Request
from capo_ray.critics.routing import Member, Pool, Ticket
from capo_ray.engines.protocols import Completion, EngineBusy, Message, PromptTooLong, Replies, RequestRejected
from capo_ray.types import Metrics, Sampling

SAMPLING = Sampling(max_tokens=1000)
SETTINGS = asked_with(break_pause_s=10, outage_limit_s=100, deadline_floor_s=5, backoff_s=1.0)
Fault = Callable[["Engine"], Exception | float | None]


@dataclass
class Engine:
    """Shares `tokens_per_s` among its requests, each of which is answered with `tokens` tokens.

    `fault` may give, per request, an error to raise, or seconds to take instead.
    """

    name: str = "a"
    tokens: int = 100
    tokens_per_s: float = 100.0
    fault: Fault = lambda engine: None
    started: list[float] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    cancelled: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        self.started.append(now())
        self.asked.append(messages[-1]["content"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self.fault(self)
            if isinstance(fault, Exception):
                await asyncio.sleep(0.001)
                raise fault
            await (self._work() if fault is None else asyncio.sleep(fault))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        self.ended.append(now())
        completion = Completion(text="Yes", truncated=False, num_tokens=self.tokens)
        return Replies(completions=(completion,) * n, prompt_tokens=10, cached_tokens=0)

    async def _work(self) -> None:
        left = float(self.tokens)
        while left > 1e-9:
            await asyncio.sleep(0.05)
            left -= 0.05 * self.tokens_per_s / self.in_flight

    def metrics(self) -> Metrics:
        return {}


def line(*engines: Engine, room: int = 8, **given: Any) -> Line:
    return Line(engines, replace(SETTINGS, **given), room=room)


def request(seed: int = 0, n: int = 1) -> Request:
    message = {"role": "user", "content": f"question {seed}"}
    return Request((message,), SAMPLING, n, seed, f"p/{seed}", f"question {seed}")


async def ask_many(service: Line, count: int) -> list[object]:
    return await asyncio.gather(*(service.ask(request(seed)) for seed in range(count)))


def always(fault: Exception | float) -> Fault:
    return lambda engine: fault


# ---- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_requests", [200, 500, 1000])
@pytest.mark.parametrize("fast", [1, 3])
def test_one_member_five_times_slower_does_not_hold_the_others_up(num_requests: int, fast: int) -> None:
    """The whole takes at most 1.3 of what an ideal split would take."""
    engines = [Engine("slow", tokens_per_s=20), *(Engine(f"fast {i}") for i in range(fast))]

    async def scene() -> float:
        await ask_many(line(*engines), num_requests)
        return now()

    ideal = num_requests * 100 / (20 + 100 * fast)
    assert ideal <= play(scene()) < 1.3 * ideal
    assert sum(len(engine.ended) for engine in engines) == num_requests


def test_a_member_known_to_be_slow_is_not_the_last_to_be_done() -> None:
    """With much room per member the slow one would be filled up with what takes it longest."""
    engines = [Engine("slow", tokens_per_s=20), *(Engine(f"fast {i}") for i in range(3))]

    async def scene() -> float:
        service = line(*engines, room=32)
        await ask_many(service, 100)
        start = now()
        await ask_many(service, 300)
        return now() - start

    assert play(scene()) < 1.3 * 300 * 100 / 320


def test_a_member_of_fixed_latency_five_times_the_others() -> None:
    """Engines whose requests do not slow each other down."""
    engines = [Engine("slow", fault=always(5.0)), *(Engine(f"fast {i}", fault=always(1.0)) for i in range(3))]

    async def scene() -> float:
        await ask_many(line(*engines), 1000)
        return now()

    assert play(scene()) < 1.3 * 1000 / (8 * (3 + 1 / 5))


def test_responses_of_a_problem_go_where_it_was_begun() -> None:
    """Also when all engines are idle: its prefix is in that one's cache."""
    a, b = Engine("a"), Engine("b")

    async def scene() -> None:
        service = line(a, b)
        await ask_many(service, 2)
        for seed in (1, 0) * 4:
            await service.ask(request(seed))

    play(scene())
    assert (set(a.asked), set(b.asked)) == ({"question 0"}, {"question 1"})


def test_problems_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has new ones in every step."""
    monkeypatch.setattr(routing, "_MOST_HOMES", 1)
    a, b = Engine("a"), Engine("b")

    async def scene() -> None:
        service = line(a, b)
        await ask_many(service, 2)
        for seed in (2, 1):
            await service.ask(request(seed))

    play(scene())
    assert (len(a.asked), len(b.asked)) == (3, 1)


# ---- deadlines -------------------------------------------------------------------------------------------------------


def seated(pool: Pool, longest: int, in_flight: int = 1) -> tuple[Ticket, Member]:
    (member,) = pool.members
    member.in_flight = in_flight
    return Ticket(prefix="", longest=longest), member


def test_a_deadline_follows_tokens_pace_and_queue() -> None:
    pool = Pool([Engine()], SETTINGS, room=8)
    assert pool.deadline_s(*seated(pool, 1000)) == 600  # nothing is known: all there is
    pool.members[0].pace.learn(seconds=1.0, tokens=100, in_flight=2)
    assert pool.deadline_s(*seated(pool, 1000)) == pytest.approx(4 * 10)
    assert pool.deadline_s(*seated(pool, 2000)) == pytest.approx(4 * 20)
    assert pool.deadline_s(*seated(pool, 1000, in_flight=6)) == pytest.approx(4 * 10 * 3)
    assert pool.deadline_s(*seated(pool, 10)) == 5  # the floor
    assert pool.deadline_s(*seated(pool, 10**6)) == 600
    for _ in range(100):
        pool.members[0].pace.learn(seconds=4.0, tokens=100, in_flight=2)
    assert pool.deadline_s(*seated(pool, 1000)) == pytest.approx(4 * 40)


def test_a_hanging_request_is_given_up_as_soon_as_the_pace_tells() -> None:
    """The first may take all the time there is, as engines start cold; later ones are known to be faster."""
    hangs: set[int] = {1}
    engine = Engine(fault=lambda e: 10_000.0 if len(e.started) in hangs else 2.0)

    async def scene() -> list[float]:
        service = line(engine, backoff_s=0)
        await service.ask(request())
        cold = now()
        hangs.add(len(engine.started) + 1)
        await service.ask(request())
        return [cold, now() - cold]

    cold, known = play(scene())
    assert cold == pytest.approx(600 + 2)
    assert known == pytest.approx(4 * 1000 * 0.02 + 2)
    assert engine.cancelled == 2 and len(engine.ended) == 2


def test_an_engine_that_becomes_slow_is_given_more_time() -> None:
    """A member that is merely slower than measured answers after a few tries instead of failing for ever."""
    engine = Engine(fault=lambda e: 1.0 if len(e.started) <= 5 else 300.0)

    async def scene() -> object:
        service = line(engine, backoff_s=0, attempts=5, break_after=99)
        for _ in range(5):
            await service.ask(request())
        return await service.ask(request())

    assert isinstance(play(scene()), tuple)
    assert [round(b - a) for a, b in pairwise(engine.started)][4:] == [1, 40, 80, 160]


def test_the_last_answers_of_a_batch_were_not_alone() -> None:
    """Answers that come all at once were made beside one another; the next batch is given no more time for it."""
    engine = Engine(fault=always(1.0))

    async def scene() -> None:
        service = line(engine, room=64)
        (member,) = service.pool.members
        await ask_many(service, 64)
        assert 32 < member.pace.load <= 64
        assert service.pool.deadline_s(*seated(service.pool, 1000, 64)) < 2 * 40

    play(scene())


def test_the_first_answer_of_a_batch_was_not_alone_either() -> None:
    """It was sent when nothing else was, and yet made beside all that followed."""
    engine = Engine(fault=lambda e: 1.0 if len(e.started) == 1 else 2.0)

    async def scene() -> None:
        service = line(engine, room=64)
        asking = asyncio.create_task(ask_many(service, 64))
        await asyncio.sleep(1.5)
        assert service.pool.members[0].pace.load == 64
        await asking

    play(scene())


def test_requests_that_hang_side_by_side_are_one_lesson() -> None:
    """Sixty-four timeouts at a time leave the engine twice as slow, and its next answer as fast as it is."""
    engine = Engine(fault=lambda e: 10_000.0 if 10 < now() < 600 else 2.0 if now() > 600 else 1.0)

    async def scene() -> None:
        service = line(engine, room=64, attempts=1, break_after=99)
        (member,) = service.pool.members
        await ask_many(service, 64)
        assert (member.pace.per_token_s, member.pace.doubt) == (pytest.approx(0.01), 1)
        await asyncio.sleep(20)
        await ask_many(service, 64)
        assert engine.cancelled == 64 and now() < 600
        assert (member.pace.per_token_s, member.pace.doubt) == (pytest.approx(0.01), 2)
        await asyncio.sleep(600)
        await service.ask(request())
        assert (member.pace.per_token_s, member.pace.doubt) == (pytest.approx(0.02), 1)

    play(scene())


def test_doubt_ends_where_all_the_time_is_given() -> None:
    """Timeouts without end do not make a number without end of an engine's pace."""
    engine = Engine(fault=lambda e: 1.0 if len(e.started) == 1 else 10_000.0)

    async def scene() -> float:
        service = line(engine, attempts=50, break_after=99, backoff_s=0)
        await service.ask(request())
        await service.ask(request())
        return service.pool.members[0].pace.doubt

    assert play(scene()) == 16


# ---- retries ---------------------------------------------------------------------------------------------------------


def test_retries_go_elsewhere_and_back_off() -> None:
    engines = [Engine(name, fault=always(ConnectionError("lost"))) for name in "abc"]
    answer = play(line(*engines, attempts=4).ask(request()))
    assert answer == Failure("engine_error", "ConnectionError: lost", answer.critic)
    assert sorted(len(engine.started) for engine in engines) == [1, 1, 2]
    times = sorted(time for engine in engines for time in engine.started)
    assert [round(b - a) for a, b in pairwise(times)] == [1, 2, 4]


def test_a_retry_is_not_a_second_answer() -> None:
    """A request that was given up is cancelled where it ran; the replies are those of one engine."""
    slow, fast = Engine("slow", fault=always(50.0)), Engine("fast", fault=always(1.0))

    async def scene() -> object:
        service = line(slow, fast, deadline_s=10)
        return await service.ask(request(n=3))

    replies, critic = play(scene())  # type: ignore[misc]
    assert (critic, len(replies.completions)) == ("fast", 3)
    assert (slow.cancelled, slow.ended, slow.in_flight) == (1, [], 0)


def test_too_long_is_said_at_once() -> None:
    engine = Engine(fault=always(PromptTooLong("9000 tokens")))
    assert play(line(engine).ask(request())) == Failure("refused", "9000 tokens", "a")
    assert len(engine.started) == 1


# ---- rests -----------------------------------------------------------------------------------------------------------


def test_retry_after_is_honoured() -> None:
    """Nothing is sent until then; then one request, and only when that succeeds the others. No attempt is used up."""
    engine = Engine(fault=lambda e: EngineBusy("slow down", 40.0) if e.started[-1] < 100 else 1.0)

    async def scene() -> list[object]:
        return await ask_many(line(engine, attempts=1, outage_limit_s=1000), 20)

    assert all(isinstance(answer, tuple) for answer in play(scene()))
    assert [sum(start <= time < start + 39 for time in engine.started) for start in (0, 40, 80)] == [8, 1, 1]
    assert engine.started[10] >= 120 and len(engine.started) == 10 + 20


def test_without_retry_after_the_pause_is_the_breakers() -> None:
    engine = Engine(fault=lambda e: EngineBusy("slow down") if now() < 1 else 1.0)
    play(line(engine).ask(request()))
    assert [round(time) for time in engine.started] == [0, 10]


def test_a_busy_server_gets_fewer_at_a_time_and_slowly_more() -> None:
    """A server that takes three at a time is soon asked about as many."""
    refused: list[float] = []

    def limit(engine: Engine) -> Exception | float | None:
        if engine.in_flight > 3:
            refused.append(now())
            return EngineBusy("slow down", 1.0)
        return 2.0

    engine = Engine(fault=limit)

    async def scene() -> list[object]:
        return await ask_many(line(engine, attempts=1), 300)

    assert all(isinstance(answer, tuple) for answer in play(scene()))
    assert len(refused) < 80
    assert engine.ended[-1] < 1.6 * 300 * 2.0 / 3


def test_a_server_is_soon_asked_for_as_much_as_it_takes() -> None:
    """One that takes half of what it was sent is halved once, however many it turned away at a time; one that was busy
    for a while gets all again."""
    takes = 32
    engine = Engine(fault=lambda e: EngineBusy("slow down", 1.0) if e.in_flight > takes else 1.0)

    async def scene() -> float:
        nonlocal takes
        service = line(engine, room=64, attempts=1)
        start = now()
        await ask_many(service, 1000)
        took, takes, engine.most_in_flight = now() - start, 64, 0
        await ask_many(service, 1000)
        return took

    assert play(scene()) < 1.6 * 1000 / 32
    assert engine.most_in_flight == 64


def test_a_server_that_is_busy_with_little_is_asked_for_less_than_that() -> None:
    """Half of the room would be more than what it has refused already."""
    engine = Engine(fault=lambda e: EngineBusy("slow down", 1.0) if e.in_flight > 3 else 5.0)

    async def scene() -> float:
        service = line(engine, room=64, attempts=1)
        begun = [asyncio.create_task(service.ask(request(seed))) for seed in range(4)]
        await asyncio.sleep(0.5)
        room = service.pool.members[0].room
        await asyncio.gather(*begun)
        return room

    assert play(scene()) <= 3


def test_others_wait_for_the_one_that_tries_a_server_again() -> None:
    """It is busy for most of the patience, and its next answer takes longer than what is left."""
    engine = Engine(fault=lambda e: EngineBusy("slow down", 90.0) if now() < 1 else 20.0)
    assert all(isinstance(answer, tuple) for answer in play(ask_many(line(engine), 20)))


def test_a_rest_is_not_waited_for_longer_than_an_outage() -> None:
    async def scene() -> float:
        assert isinstance(await line(Engine(fault=always(EngineBusy("slow down", 5000.0)))).ask(request()), Outage)
        return now()

    assert play(scene()) == pytest.approx(100, abs=0.1)


def test_a_rest_has_an_end_also_where_what_was_sent_before_is_answered() -> None:
    """The patience begins anew with such an answer, as the engine lives; it is not without end."""
    engine = Engine(fault=lambda e: EngineBusy("slow down", 5000.0) if len(e.started) == 8 else 5.0)

    async def scene() -> list[object]:
        answers = await ask_many(line(engine), 20)
        assert now() == pytest.approx(105, abs=0.1)
        return answers

    assert sum(isinstance(answer, Outage) for answer in play(scene())) == 13


def test_answers_of_before_do_not_end_a_rest() -> None:
    """Requests that were in flight when the server asked for patience come back during it."""
    engine = Engine(fault=lambda e: EngineBusy("slow down", 30.0) if len(e.started) == 8 else 5.0)

    async def scene() -> list[object]:
        return await ask_many(line(engine), 20)

    play(scene())
    assert [time for time in engine.started if 0.01 < time < 30] == []


# ---- outages ---------------------------------------------------------------------------------------------------------


def test_an_outage_is_waited_for_and_costs_no_attempt(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(fault=lambda e: ConnectionError("starting") if now() < 90 else 1.0)

    async def scene() -> list[object]:
        return await ask_many(line(engine, attempts=2), 50)

    assert all(isinstance(answer, tuple) for answer in play(scene()))
    probes = [time for time in engine.started if 1 < time < 90]
    assert 7 <= len(probes) <= 9  # one per pause
    assert "every critic is down; requests wait for one to come back, 100 s at most" in caplog.text
    assert "critic a answers again" in caplog.text


def test_no_request_tries_a_broken_engine() -> None:
    """It is asked a question of its own, and what fails is no attempt of a request."""
    engine = Engine(fault=lambda e: ConnectionError("starting") if now() < 90 else 1.0)
    assert isinstance(play(line(engine, attempts=2, break_after=1).ask(request())), tuple)
    assert len(engine.started) == 1 + 9 + 1
    assert engine.asked.count("Is 1 + 1 = 2? Answer Yes or No.") == 9


def test_an_engine_that_answers_pings_alone_makes_requests_fail() -> None:
    """They neither wait for ever nor hold others up, since failures of an engine that is there are attempts."""
    engine = Engine(fault=lambda e: 1.0 if e.asked[-1].startswith("Is 1 + 1") else RuntimeError("HTTP 500"))

    async def scene() -> list[object]:
        answers = await ask_many(line(engine), 20)
        assert now() < 150
        return answers

    assert play(scene()) == [Failure("engine_error", "RuntimeError: HTTP 500", "a")] * 20


def test_a_hanging_engine_is_waited_for_once() -> None:
    """Its first requests run into their deadline; those of later steps are given up at once until it answers a ping,
    which is given the least time that there is."""
    engine = Engine(fault=lambda e: 10_000.0 if 10 < now() < 6000 else 1.0)

    async def scene() -> None:
        service = line(engine, room=64, outage_limit_s=60, deadline_floor_s=30, break_pause_s=30)
        await ask_many(service, 64)
        await asyncio.sleep(11 - now())
        assert all(isinstance(answer, Outage) for answer in await ask_many(service, 64))
        assert now() < 11 + 600 + 60 + 1
        for _ in range(20):
            await asyncio.sleep(59)
            start = now()
            assert all(isinstance(answer, Outage) for answer in await ask_many(service, 64))
            assert now() == start
        await asyncio.sleep(6000 + 61 - now())
        assert all(isinstance(answer, tuple) for answer in await ask_many(service, 64))

    play(scene())


async def one_every(seconds: float, service: Line, count: int, **given: object) -> list[object]:
    tasks = []
    for seed in range(count):
        tasks.append(asyncio.create_task(service.ask(replace(request(seed), **given))))  # type: ignore[arg-type]
        await asyncio.sleep(seconds)
    return await asyncio.gather(*tasks)


def test_what_a_hanging_engine_has_in_hand_is_given_up_with_it() -> None:
    """It goes elsewhere at once, and that is no attempt of its own."""
    hangs, well = Engine("hangs", fault=always(10_000.0)), Engine("well", fault=always(1.0))

    async def scene() -> list[object]:
        answers = await one_every(50, line(hangs, well, attempts=1), 5, prefers="hangs")
        assert now() == pytest.approx(600 + 2 * 50 + 1)
        return answers

    answers = play(scene())
    assert answers[:3] == [Failure("timeout", "no answer within 600 s", "hangs")] * 3
    assert [critic for _, critic in answers[3:]] == ["well"] * 2  # type: ignore[misc]
    assert (len(well.started), hangs.cancelled, hangs.in_flight) == (2, 5, 0)


def test_what_hangs_with_an_engine_that_does_not_answer_a_ping_is_given_up_then() -> None:
    """Errors alone do not say that what else it has in hand is lost; nothing is lost while it waits for its return."""
    engine = Engine(fault=lambda e: ConnectionError("gone") if 2 < len(e.started) <= 5 else 10_000.0)

    async def scene() -> list[object]:
        service = line(engine, attempts=1)
        task = asyncio.create_task(ask_many(service, 5))
        await asyncio.sleep(14)
        assert (service.pool.num_down, engine.cancelled) == (1, 0)
        await asyncio.sleep(2)
        assert engine.cancelled == 3 and service.pool.members[0].in_flight == 0  # two requests and the ping
        engine.fault = always(1.0)
        return await task

    answers = play(scene())
    assert sum(isinstance(answer, tuple) for answer in answers) == 2
    assert answers.count(Failure("engine_error", "ConnectionError: gone", "a")) == 3


def test_a_ping_that_a_request_has_overtaken_says_nothing() -> None:
    """The engine answered while the ping was under way, and went then: what follows is an outage with an end."""

    def fault(engine: Engine) -> Exception | float:
        if now() < 1:
            return 12.0 if len(engine.started) == 1 else ConnectionError("gone")
        return 10_000.0

    engine = Engine(fault=fault)

    async def scene() -> list[object]:
        async with asyncio.timeout(5000):
            return await ask_many(line(engine, deadline_s=60), 12)

    answers = play(scene())
    assert {type(answer) for answer in answers} == {tuple, Outage}


def test_errors_of_some_requests_do_not_end_the_others() -> None:
    engine = Engine(fault=lambda e: [50.0, 50.0, *[RuntimeError("HTTP 500")] * 3, 1.0][len(e.started) - 1])
    answers = play(ask_many(line(engine, attempts=1), 5))
    assert sum(isinstance(answer, tuple) for answer in answers) == 2
    assert [round(time) for time in engine.ended] == [11, 50, 50] and engine.cancelled == 0


def test_an_outage_that_lasts_too_long_is_told_and_ends_all_the_same() -> None:
    engine = Engine(fault=lambda e: ConnectionError("starting") if now() < 200 else 1.0)

    async def scene() -> list[object]:
        service = line(engine)
        first = await ask_many(service, 50)
        assert 100 <= now() < 111
        assert await service.ask(request()) == first[-1]  # not waited for again
        assert now() < 111
        await asyncio.sleep(150)
        return [*first, *await ask_many(service, 50)]

    answers = play(scene())
    assert answers[:50] == [Outage("a: ConnectionError: starting")] * 50
    assert all(isinstance(answer, tuple) for answer in answers[50:])


# ---- requests that are rejected --------------------------------------------------------------------------------------


def test_a_rejected_request_fails_alone() -> None:
    """The engine is no worse for it, however many there are; the others are answered as if they had not been."""
    engine = Engine(fault=lambda e: RequestRejected("HTTP 400: filter") if int(e.asked[-1][9:]) < 50 else 1.0)

    async def scene() -> list[object]:
        service = line(engine)
        answers = await ask_many(service, 60)
        assert service.pool.num_down == 0 and now() < 5
        return answers

    answers = play(scene())
    assert answers[:50] == [Failure("engine_error", "HTTP 400: filter", "a")] * 50
    assert all(isinstance(answer, tuple) for answer in answers[50:])
    assert len(engine.started) == 60


def test_a_server_that_rejects_everything_takes_nothing_from_the_others() -> None:
    """Such as one that serves another model by now: what it rejects is sent elsewhere, until each has rejected it."""
    wrong, right = Engine("wrong", fault=always(RequestRejected("unknown model"))), Engine("right", fault=always(1.0))
    assert all(isinstance(answer, tuple) for answer in play(ask_many(line(wrong, right), 100)))
    right.fault = wrong.fault
    assert play(line(wrong, right).ask(request())).outcome == "engine_error"  # type: ignore[union-attr]


def test_an_engine_that_rejects_pings_is_there() -> None:
    engine = Engine(
        fault=lambda e: (
            RequestRejected("16 tokens are too few")
            if e.asked[-1].startswith("Is 1 + 1")
            else ConnectionError("starting")
            if now() < 5
            else 1.0
        )
    )
    assert all(isinstance(answer, tuple) for answer in play(ask_many(line(engine, attempts=2), 20)))


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_what_ends_is_cancelled_everywhere() -> None:
    """In flight, in the queue, and between two tries; afterwards the engine works as if nothing had been."""
    engine = Engine(fault=lambda e: ConnectionError("lost") if len(e.started) <= 2 else 100.0)

    async def scene() -> list[object]:
        service = line(engine, backoff_s=20, break_after=99)
        tasks = [asyncio.create_task(service.ask(request(seed))) for seed in range(30)]
        await asyncio.sleep(10)
        assert engine.in_flight == 8
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.in_flight == 0 and service.pool.members[0].in_flight == 0
        sent = len(engine.started)
        await asyncio.sleep(100)
        assert len(engine.started) == sent
        return await ask_many(service, 10)

    with_answers = play(scene())
    assert all(isinstance(answer, tuple) for answer in with_answers)


def test_needs_an_engine() -> None:
    with pytest.raises(ValueError, match="at least one engine"):
        line()
