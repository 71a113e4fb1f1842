"""The judging service on fake engines: slow, dead, hanging, flapping, refusing; and cancelled."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from asked import asked_with

from capo_ray.credit.critique import Reference, fingerprint, render_reply, unwrap
from capo_ray.credit.template import shipped
from capo_ray.critics.service import Critics, Voter
from capo_ray.engines.protocols import Completion, Message, PromptTooLong, Replies
from capo_ray.types import Critique, Metrics, Sampling

REFERENCE = Reference("answer", "2")
STEPS = ["one", "two", "three"]


@dataclass
class FakeCritic:
    """Answers every request with the same wrong steps after `seconds`, unless `fault` does something else first."""

    name: str = "a"
    seconds: float = 0.0
    text: str = render_reply([1])
    fault: Callable[["FakeCritic"], Awaitable[None]] | None = None
    asked: list[dict] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        self.asked.append({"messages": messages, "sampling": sampling, "n": n, "seed": seed})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.fault:
                await self.fault(self)
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        completion = Completion(text=self.text, truncated=False, num_tokens=7)
        return Replies(completions=(completion,) * n, prompt_tokens=50, cached_tokens=20)

    def metrics(self) -> Metrics:
        return {}


async def die(critic: FakeCritic) -> None:
    await asyncio.sleep(0.001)
    raise ConnectionError("the actor died")


async def hang(critic: FakeCritic) -> None:
    await asyncio.sleep(3600)


async def refuse(critic: FakeCritic) -> None:
    raise PromptTooLong("9000 tokens do not fit 8192")


async def cancel(critic: FakeCritic) -> None:
    raise asyncio.CancelledError


FAST = {
    "critiques": 2,
    "deadline_s": 5.0,
    "backoff_s": 0.001,
    "break_pause_s": 0.05,
    "outage_s": 0.2,
    "on_outage": "outcome_only",
}


def critics(*engines: FakeCritic, **settings: object) -> Critics:
    return Critics(engines, asked_with(**(FAST | settings)))


async def judge(service: Critics, question: str = "1 + 1?", seed: int = 0) -> tuple[Critique, ...]:
    return await service.judge(question, REFERENCE, STEPS, response_key="p/0", seed=seed)


async def judge_many(service: Critics, count: int, question: str = "1 + 1?") -> list[tuple[Critique, ...]]:
    return await asyncio.gather(*(judge(service, question, seed) for seed in range(count)))


def outcomes(answers: Sequence[Sequence[Critique]]) -> Counter[str]:
    return Counter(critique.outcome for critiques in answers for critique in critiques)


async def refuse_solutions(critic: FakeCritic) -> None:
    if "LONG" in critic.asked[-1]["messages"][-1]["content"]:
        raise PromptTooLong("9000 tokens do not fit 8192")


def test_a_reference_that_does_not_fit_is_cut_to_its_answer_and_no_step_is_cut() -> None:
    engine = FakeCritic(fault=refuse_solutions)
    service = critics(engine)
    judged = service.judge(
        "?",
        Reference("solution", "LONG"),
        STEPS,
        response_key="p/0",
        seed=0,
        shorter=Reference("answer", "2"),
    )
    assert outcomes([asyncio.run(judged)]) == {"ok": 2}
    prompts = [asked["messages"][-1]["content"] for asked in engine.asked]
    assert ["LONG" in prompt for prompt in prompts] == [True, False]
    assert all(unwrap(prompt) == list(STEPS) for prompt in prompts)
    assert service.metrics()["references_shortened"] == 1


@pytest.mark.parametrize("cache", [0, 8])
@pytest.mark.parametrize("adaptive", [False, True])
def test_only_the_critic_whose_window_is_too_short_is_shown_less(adaptive: bool, cache: int) -> None:
    big, small = FakeCritic("big"), FakeCritic("small", fault=refuse_solutions)
    given = {"critiques": 4, "adaptive": adaptive, "first_round": 1, "full_share": 0.0, "cache": cache}
    service = Critics([big], asked_with(**(FAST | given)), others=[Voter(engines=[small])])

    async def scene() -> list[tuple[Critique, ...]]:
        return [
            await service.judge(
                "?", Reference("solution", "LONG"), STEPS, response_key="", seed=0, shorter=Reference("answer", "2")
            )
            for _ in range(2)
        ]

    answers = asyncio.run(scene())
    for answer in answers:
        assert [critique.outcome for critique in answer] == ["ok"] * 4
        shown = [critique.prompt_hash for critique in answer]
        assert shown[0] == shown[2] != shown[1] == shown[3]
    assert service.metrics()["references_shortened"] == 2
    long = [["LONG" in asked["messages"][-1]["content"] for asked in engine.asked] for engine in (big, small)]
    assert all(long[0]) and sum(long[1]) == (1 if cache else 2)  # later rounds do not try it again


def test_what_fits_with_no_reference_is_refused() -> None:
    service = critics(FakeCritic(fault=refuse))
    judged = service.judge("?", REFERENCE, STEPS, response_key="p/0", seed=0, shorter=Reference("answer", "2"))
    assert outcomes([asyncio.run(judged)]) == {"refused": 2}


def test_k_critiques_are_one_request() -> None:
    engine = FakeCritic()
    service = critics(
        engine, critiques=4, template=shipped("brief"), temperature=0.5, top_p=0.8, max_critique_tokens=99
    )
    answer = asyncio.run(judge(service, seed=17))
    (asked,) = engine.asked
    assert (asked["n"], asked["seed"]) == (4, 17)
    assert asked["sampling"] == Sampling(max_tokens=99, temperature=0.5, top_p=0.8)
    assert "<step_2>\nthree\n</step_2>" in asked["messages"][1]["content"]
    shown = fingerprint(asked["messages"])
    assert answer == tuple(
        Critique(
            text=engine.text,
            outcome="ok",
            wrong_steps=(1,),
            says_correct=False,
            critic="a",
            num_tokens=7,
            seed=17 + number,
            prompt_hash=shown,
        )
        for number in range(4)
    )


def test_replies_are_parsed() -> None:
    for text, outcome in (("?", "unreadable"), ("<incorrect_steps>9</incorrect_steps>", "out_of_range")):
        answer = asyncio.run(judge(critics(FakeCritic(text=text))))
        assert [critique.outcome for critique in answer] == [outcome] * 2


@pytest.mark.parametrize("fault", [die, hang, cancel])
def test_a_failing_engine_is_left_for_another(fault: Callable[[FakeCritic], Awaitable[None]]) -> None:
    """Every response is judged, once, by the one that is well; the other is soon left alone."""
    bad, good = FakeCritic("bad", fault=fault), FakeCritic("good", seconds=0.001)
    service = critics(bad, good, max_sequences=8, break_pause_s=60, deadline_s=0.2)
    answers = asyncio.run(judge_many(service, 50))
    assert outcomes(answers) == {"ok": 100}
    assert {critique.critic for answer in answers for critique in answer} == {"good"}
    assert len(good.asked) == 50 and 1 <= len(bad.asked) <= 8
    assert sorted(asked["seed"] for asked in good.asked) == list(range(50))  # a retry keeps its seed
    metrics = service.metrics()
    assert metrics["retries"] == len(bad.asked) and metrics["engines_down"] == (len(bad.asked) >= 3)


@pytest.mark.parametrize("fault", [die, hang, cancel])
def test_all_dead(fault: Callable[[FakeCritic], Awaitable[None]]) -> None:
    """The wait is bounded, and what nobody was up for counts as asked of nobody."""
    engines = [FakeCritic(name, fault=fault) for name in "ab"]
    start = time.monotonic()
    answers = asyncio.run(judge_many(critics(*engines, deadline_s=0.1), 40))
    assert outcomes(answers) == {"cancelled": 80}
    assert time.monotonic() - start < 5
    assert all(critique.wrong_steps == () for answer in answers for critique in answer)


def test_one_engine_is_tried_again() -> None:
    async def once(critic: FakeCritic) -> None:
        if len(critic.asked) == 1:
            raise ConnectionError("reset")

    engine = FakeCritic(fault=once)
    assert outcomes([asyncio.run(judge(critics(engine)))]) == {"ok": 2}
    assert len(engine.asked) == 2
    always = FakeCritic(fault=die)
    assert outcomes([asyncio.run(judge(critics(always, attempts=2)))]) == {"engine_error": 2}
    assert len(always.asked) == 2


def test_tries_count_where_they_were_made() -> None:
    """And not for whoever is answered next."""

    async def lose_two(critic: FakeCritic) -> None:
        if "flaky" in str(critic.asked[-1]["messages"]):
            flaky.append(1)
            if len(flaky) < 3:
                raise ConnectionError("reset")

    async def scene() -> None:
        service = critics(FakeCritic(fault=lose_two), backoff_s=0.01)
        beside = service.apart()

        async def others() -> None:
            for _ in range(20):
                await judge(beside)
                await asyncio.sleep(0.001)

        await asyncio.gather(judge(service, "flaky"), others())
        assert (service.metrics()["retries"], beside.metrics()["retries"]) == (2, 0)

    flaky: list[int] = []
    asyncio.run(scene())


def test_a_retry_goes_to_another_engine() -> None:
    async def first_time(critic: FakeCritic) -> None:
        if sum(len(engine.asked) for engine in engines) == 1:
            raise ConnectionError("reset")

    engines = [FakeCritic(name, fault=first_time) for name in "abc"]
    assert outcomes([asyncio.run(judge(critics(*engines)))]) == {"ok": 2}
    assert sorted(len(engine.asked) for engine in engines) == [0, 1, 1]


def test_too_long_is_refused_and_nobodys_failure() -> None:
    engine = FakeCritic(fault=refuse)
    service = critics(engine)
    answers = asyncio.run(judge_many(service, 20))
    assert outcomes(answers) == {"refused": 40}
    assert len(engine.asked) == 20 and service.metrics()["engines_down"] == 0


def test_wrong_number_of_replies_is_an_engine_error() -> None:
    class Short(FakeCritic):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
            return await super().complete(messages, sampling, n=n - 1, seed=seed)

    assert outcomes([asyncio.run(judge(critics(Short())))]) == {"engine_error": 2}


@pytest.mark.parametrize(
    "made",
    [
        lambda: Completion(text="Yes", truncated=False, num_tokens=-5),
        lambda: Completion(text="Yes", truncated=False, num_tokens=2**40),
        lambda: Completion(text="Yes", truncated=False, num_tokens="7"),  # type: ignore[arg-type]
        lambda: Completion(text=None, truncated=False, num_tokens=7),  # type: ignore[arg-type]
        lambda: Replies(completions=(), prompt_tokens=-1, cached_tokens=0),
        lambda: None,
        lambda: "Yes",
    ],
)
def test_what_no_ledger_can_hold_is_an_engine_error(made: Callable[[], object]) -> None:
    """Whoever gives it, a critic of the user's own too."""

    class Odd(FakeCritic):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
            return made()  # type: ignore[return-value]

    assert outcomes([asyncio.run(judge(critics(Odd())))]) == {"engine_error": 2}


def test_concurrency_is_bounded() -> None:
    engines = [FakeCritic(name, seconds=0.005) for name in "ab"]
    service = critics(*engines, max_sequences=10)
    answers = asyncio.run(judge_many(service, 60))
    assert outcomes(answers) == {"ok": 120}
    assert [engine.most_in_flight for engine in engines] == [5, 5]


def test_a_slow_member_gets_less() -> None:
    """Five times slower: the busier one is done within 1.3 of the ideal split."""
    slow, fast = FakeCritic("slow", seconds=0.05), FakeCritic("fast", seconds=0.01)

    async def scene() -> None:
        service = critics(slow, fast, max_sequences=8)
        await asyncio.gather(*(judge(service, f"question {i}") for i in range(240)))

    asyncio.run(scene())
    busy = max(len(engine.asked) * engine.seconds for engine in (slow, fast))
    assert busy < 1.3 * 240 / (1 / slow.seconds + 1 / fast.seconds)


def test_a_prompts_responses_follow_their_prefix_unless_it_is_busy() -> None:
    async def scene() -> list[list[int]]:
        engines = [FakeCritic(name, seconds=0.001) for name in "ab"]
        service = critics(*engines, prefix_slack=4)
        for question in ("p", "q"):
            for _ in range(4):
                await judge(service, question)
        calm = [len(engine.asked) for engine in engines]
        await judge_many(service, 32, "p")
        busy = [len(engine.asked) - before for engine, before in zip(engines, calm, strict=True)]
        questions = {asked["messages"][1]["content"] for asked in engines[0].asked[:8]}
        assert len(questions) <= 2
        return [calm, busy]

    calm, busy = asyncio.run(scene())
    assert all(count % 4 == 0 for count in calm)
    assert abs(busy[0] - busy[1]) <= 5


def test_an_engine_comes_back() -> None:
    """After the pause one request at a time tries it; one success and it is used again."""
    up = False

    async def while_down(critic: FakeCritic) -> None:
        await asyncio.sleep(0)
        if not up:
            raise ConnectionError("starting")

    async def scene() -> None:
        nonlocal up
        engine = FakeCritic(fault=while_down, seconds=0.001)
        service = critics(engine, attempts=1, break_pause_s=0.03, outage_s=1.0, max_sequences=20)
        first = await judge_many(service, 10)
        assert outcomes(first) == {"engine_error": 20}
        waiting = asyncio.create_task(judge_many(service, 10))
        await asyncio.sleep(0.01)
        assert len(engine.asked) == 10  # left alone
        up = True
        assert outcomes(await waiting) == {"ok": 20}
        assert service.metrics()["engines_down"] == 0

    asyncio.run(scene())


def test_while_down_only_pings_are_sent() -> None:
    async def scene() -> None:
        engine = FakeCritic(fault=die)
        service = critics(engine, attempts=1, break_pause_s=0.03, outage_s=0.2, max_sequences=20)
        await judge_many(service, 10)
        answers = await judge_many(service, 200)
        assert outcomes(answers) == {"cancelled": 400}
        assert 10 < len(engine.asked) < 25
        sent = len(engine.asked)
        engine.fault = None  # they go on after the outage was given up, until one is answered
        await asyncio.sleep(0.2)
        assert outcomes([await judge(service)]) == {"ok": 2}
        assert sent < len(engine.asked) <= sent + 3
        assert [len(asked["messages"]) for asked in engine.asked[10:]] == [1] * (len(engine.asked) - 11) + [2]

    asyncio.run(scene())


def test_cancellation_passes_through_and_frees_everything() -> None:
    """Cancelled in flight and in the queue; the seats are free afterwards and the engines are not blamed."""

    async def scene() -> None:
        engine = FakeCritic(seconds=30)
        service = critics(engine, max_sequences=4, deadline_s=60)
        tasks = [asyncio.create_task(judge(service)) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert engine.in_flight == 2
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert engine.in_flight == 0
        engine.seconds = 0
        assert outcomes(await judge_many(service, 10)) == {"ok": 20}
        assert service.metrics()["engines_down"] == 0

    asyncio.run(scene())


def test_random_faults_and_cancellations_lose_nothing() -> None:
    """Every request that is not cancelled ends with k critiques; no seat leaks."""

    async def scene(seed: int) -> None:
        rng = random.Random(seed)

        async def fault(critic: FakeCritic) -> None:
            kind = rng.random()
            if kind < 0.1:
                raise ConnectionError("lost")
            if kind < 0.15:
                await asyncio.sleep(3600)
            if kind < 0.2:
                raise PromptTooLong("no")

        engines = [FakeCritic(name, fault=fault, seconds=0.001) for name in "abc"]
        service = critics(*engines, max_sequences=8, deadline_s=0.2, break_pause_s=0.01)
        tasks = []
        for i in range(300):
            tasks.append(asyncio.create_task(judge(service, f"q{i % 7}", i)))
            if rng.random() < 0.1:
                rng.choice(tasks).cancel()
            if rng.random() < 0.3:
                await asyncio.sleep(0.001)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert all(isinstance(r, asyncio.CancelledError) or len(r) == 2 for r in results)
        judged = sum(isinstance(r, tuple) for r in results)
        metrics = service.metrics()
        assert metrics["responses"] == judged > 200
        assert sum(value for name, value in metrics.items() if name.startswith("outcome_")) == 2 * judged
        for engine in engines:
            engine.fault = None
        await asyncio.sleep(0.25)  # a ping that hangs has ended
        assert outcomes(await judge_many(service, 60)) == {"ok": 120}
        assert all(engine.most_in_flight <= 4 + 1 and engine.in_flight == 0 for engine in engines)  # and a ping

    for seed in range(3):
        asyncio.run(scene(seed))


def test_metrics_are_sums_since_the_last_call() -> None:
    service = critics(FakeCritic(text="Yes\n<incorrect_steps>1, 9</incorrect_steps>"))
    asyncio.run(judge_many(service, 3))
    metrics = service.metrics()
    seconds = metrics.pop("seconds")
    assert 0 <= seconds < 1
    assert {name: value for name, value in metrics.items() if value} == {
        "responses": 3,
        "outcome_ok": 6,
        "valid_share": 1,
        "critique_tokens": 42,
        "prompt_tokens": 150,
        "cached_prompt_tokens": 60,
        "contradictions": 6,
        "dropped_indices": 6,
        "judged_in_full": 3,
        "agreeing_pairs": 9,
        "compared_pairs": 9,
    }
    again = service.metrics()
    assert not any(again.values()) and "valid_share" not in again
    assert {"outcome_timeout", "outcome_refused", "outcome_not_asked"} <= set(again)


def test_failures_are_counted_and_exemplified_and_stop_nothing_here() -> None:
    """How many a run bears is decided over whole steps. The example is the same in whatever order they come."""

    async def scene(order: Sequence[int]) -> str:
        service = critics(FakeCritic(text="I like it."))
        for number in order:
            await service.judge("1 + 1?", REFERENCE, STEPS, response_key=f"p/{number}", seed=number)
        example = service.example()
        assert service.metrics()["outcome_unreadable"] == 40
        assert service.example() == ""
        return example

    for order in (range(20), range(19, -1, -1)):
        assert asyncio.run(scene(order)) == "a reply that ends in 'I like it.'"
    dead = critics(FakeCritic(fault=die), break_after=99)
    asyncio.run(judge_many(dead, 6))
    assert "ConnectionError: the actor died" in dead.example()


def test_needs_an_engine() -> None:
    with pytest.raises(ValueError, match="at least one engine"):
        critics()
