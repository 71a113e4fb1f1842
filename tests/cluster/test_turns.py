"""Who is awake in which phase of a step, whoever dies on the way: on actors that are small fakes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from capo_ray.cluster.turns import Engine as Taking
from capo_ray.cluster.turns import InTurn, one_at_a_time, start_all, turns_for
from capo_ray.config.compose import compose
from capo_ray.engines.protocols import NotItsTurn, WeightsChanged
from capo_ray.planning.bundles import Role, actor_name
from capo_ray.planning.turns import NEEDED, Phase

STEP: tuple[Phase, ...] = ("sync", "sample", "judge", "train", "sync")


class Gpu:
    """What is in its memory, and all that ever happened."""

    def __init__(self) -> None:
        self.held: dict[str, frozenset[str]] = {}
        self.happened: list[str] = []
        self.room = 1
        """For as many roles, whole."""

    def now(self, who: str, parts: Collection[str], *, alone: bool = False) -> None:
        if alone:
            assert not self.held, f"{who} is opened beside {self.held}"
        self.held.pop(who, None)
        if parts:
            self.held[who] = frozenset(parts)
        self.happened.append(f"{who} {'+'.join(sorted(parts)) or 'asleep'}")
        whole = [name for name, has in self.held.items() if "kv_cache" in has or name == "trainer"]
        assert len({name[:6] for name in whole}) <= self.room, f"at once: {self.held}"


class Engine:
    """An actor; `remote` of each of its methods."""

    def __init__(self, name: str, gpu: Gpu) -> None:
        self.name, self.gpu = name, gpu
        self.open_, self.restarts, self.wrong = False, 3, 0
        self.dies_at: dict[str, int] = {}
        """What it is asked -> how often it dies of that."""
        self.misses: dict[str, int] = {}
        """What it is asked -> how often that does not reach it."""
        self.asked: Counter[str] = Counter()

    def __getattr__(self, what: str) -> Any:
        async def call(*given: Any) -> Any:
            await asyncio.sleep(0)
            self.asked[what] += 1
            if self.misses.get(what, 0):
                self.misses[what] -= 1
                raise ActorUnavailableError("the connection is broken", b"0" * 16)
            if self.restarts < 0:
                raise ActorDiedError()
            if self.dies_at.get(what, 0):
                self.dies_at[what] -= 1
                self.die()
                raise ActorUnavailableError("it is being started again", b"0" * 16)
            return await getattr(self, f"do_{what}")(*given)

        return SimpleNamespace(remote=call)

    def die(self) -> None:
        self.open_ = False
        self.restarts -= 1
        self.gpu.held.pop(self.name, None)

    async def do_ready(self) -> str:
        return self.name

    async def do_opened(self) -> bool:
        return self.open_

    async def do_open(self) -> None:
        self.gpu.now(self.name, ("weights", "kv_cache"), alone=True)
        self.open_ = True

    async def do_sleep(self) -> None:
        if self.name in self.gpu.held:
            self.gpu.now(self.name, ())

    async def do_wake(self, parts: Collection[str]) -> None:
        if not self.open_:
            raise RayTaskError("wake", "", NotItsTurn(self.name)).as_instanceof_cause()
        if self.wrong:
            self.wrong -= 1
            raise RayTaskError("wake", "", WeightsChanged(f"{self.name} woke otherwise")).as_instanceof_cause()
        if self.gpu.held.get(self.name) != frozenset(parts):
            self.gpu.now(self.name, parts)


class Trainers:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        gpu.held["trainer"] = frozenset({"all"})

    async def sleep(self) -> None:
        if "trainer" in self.gpu.held:
            self.gpu.now("trainer", ())

    async def wake(self) -> None:
        if "trainer" not in self.gpu.held:
            self.gpu.now("trainer", ("all",))

    async def give_back(self) -> None:
        if "trainer" in self.gpu.held:
            self.gpu.happened.append("trainer gives back")


class World:
    def __init__(self, awake: Mapping[Phase, Collection[Role]] = NEEDED, *, open_: bool = True) -> None:
        self.gpu = Gpu()
        self.rollout, self.critic = Engine("rollout-0", self.gpu), Engine("critic-0", self.gpu)
        self.rollout.open_ = self.critic.open_ = open_
        self.trainers = Trainers(self.gpu)
        trainers: Any = self.trainers
        self.turns = InTurn(
            awake,
            engines=[Taking("rollout", "rollout-0", self.rollout, [0]), Taking("critic", "critic-0", self.critic, [0])],
            trainers=trainers,
            look_s=0.01,
        )

    async def take(self, *phases: Phase) -> None:
        for phase in phases:
            await self.turns.take(phase)


def test_a_step_goes_around_and_nobody_is_awake_beside_another() -> None:
    world = World()
    asyncio.run(world.take(*STEP, "sync"))
    assert world.gpu.happened == [
        *("trainer gives back", "rollout-0 weights", "trainer asleep", "rollout-0 kv_cache+weights"),
        *("rollout-0 asleep", "critic-0 kv_cache+weights"),
        *("critic-0 asleep", "trainer all"),
        *("trainer gives back", "rollout-0 weights"),  # what the update left with its allocator
    ]
    assert world.turns.take_seconds().keys() == {"turns/sleep_s", "turns/wake_s"}
    assert set(world.turns.take_seconds().values()) == {0.0}


def test_weights_that_were_dropped_come_before_the_next_sample() -> None:
    """As for prompts that are sampled anew after the first were judged."""
    world, needs = World(), []
    for phase in ("sync", "sample", "judge", "train", "sync"):
        needs.append(world.turns.needs_sync())
        asyncio.run(world.take(phase))
    assert needs == [True, False, False, True, True] and not world.turns.needs_sync()


def test_the_trainer_is_awake_for_a_checkpoint_and_stays_so_where_it_is() -> None:
    async def use(world: World) -> tuple[Phase | None, Phase | None]:
        await world.take("sync")
        await world.turns.with_trainer()
        first = world.turns.phase
        await world.take("sample")
        await world.turns.with_trainer()
        return first, world.turns.phase

    assert asyncio.run(use(World())) == ("sync", "train")


def test_who_has_room_in_every_phase_never_sleeps() -> None:
    """Nor are weights taken from those who sample, but where they must sleep for another's start."""
    always: Mapping[Phase, frozenset[Role]] = {phase: roles | {"rollout"} for phase, roles in NEEDED.items()}

    async def use() -> World:
        world = World(always)
        world.gpu.room = 2
        await world.take(*STEP)
        assert not world.turns.needs_sync()
        world.critic.die()
        await world.take("sample", "judge")
        assert world.turns.needs_sync()
        return world

    happened = asyncio.run(use()).gpu.happened
    assert [line for line in happened if line.startswith("rollout-0")] == [
        *("rollout-0 kv_cache+weights", "rollout-0 asleep", "rollout-0 kv_cache+weights")
    ]
    critics: Mapping[Phase, frozenset[Role]] = {phase: roles | {"critic"} for phase, roles in NEEDED.items()}
    assert not World(critics).turns.judges_later and World().turns.judges_later


def died_asleep(world: World) -> None:
    world.critic.die()


def dies_waking(world: World) -> None:
    world.critic.dies_at["wake"] = 1


def dies_when_asked(world: World) -> None:
    world.critic.dies_at["opened"] = 1


def dies_falling_asleep_again(world: World) -> None:
    world.critic.die()
    world.critic.dies_at["sleep"] = 1


@pytest.mark.parametrize("fault", [died_asleep, dies_waking, dies_when_asked, dies_falling_asleep_again])
def test_a_critic_that_is_started_again_is_opened_at_its_turn_while_all_sleep(
    fault: Callable[[World], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> World:
        world = World()
        await world.take("sync", "sample")
        fault(world)
        assert "critic-0" not in world.gpu.held
        await world.take("judge")
        return world

    world = asyncio.run(use())
    assert world.gpu.held == {"critic-0": {"weights", "kv_cache"}}
    assert "critic-0: started again; everybody else sleeps until the engine is open" in caplog.text


def test_an_engine_that_is_out_of_reach_for_a_moment_is_asleep_before_another_wakes() -> None:
    async def use() -> World:
        world = World()
        await world.take("sync", "sample")
        world.rollout.misses["sleep"] = 2
        await world.take("judge")
        return world

    assert asyncio.run(use()).gpu.held == {"critic-0": {"weights", "kv_cache"}}


def test_engines_of_several_gpus_are_opened_side_by_side() -> None:
    async def use() -> World:
        world, together = World(), asyncio.Barrier(2)
        world.gpu.room = 2

        async def opens(engine: Engine) -> None:
            await together.wait()
            engine.open_ = True

        for number in range(2):
            engine = Engine(f"critic-{number}", world.gpu)
            engine.do_open = partial(opens, engine)  # type: ignore[method-assign]
            world.turns._engines.append(Taking("critic", engine.name, engine, [number]))
        await world.take("sync", "sample", "judge")
        async with world.turns.kept():
            for taking in world.turns._engines[2:]:
                taking.actor.die()
            while not all(taking.actor.open_ for taking in world.turns._engines[2:]):
                await asyncio.sleep(0.01)
        return world

    asyncio.run(asyncio.wait_for(use(), 20))


def test_an_engine_over_several_gpus_is_opened_beside_nobody_on_any_of_them() -> None:
    """Engines on 0, 1 and 2, then one on 0 and 1 and one on 1 and 2: side by side but where they share one."""
    opening: set[Taking] = set()
    most, ended = 0, list[str]()

    async def opens(engine: Taking) -> None:
        nonlocal most
        assert not any(set(engine.gpus) & set(other.gpus) for other in opening)
        opening.add(engine)
        most = max(most, len(opening))
        await asyncio.sleep(0.01)
        opening.remove(engine)
        ended.append(engine.name)

    gpus: dict[str, Sequence[int]] = {"a": [0], "b": [1], "c": [2], "left": [0, 1], "right": [1, 2]}
    engines = [Taking("rollout", name, name, tuple(on)) for name, on in gpus.items()]
    asyncio.run(one_at_a_time(engines, opens))
    assert (sorted(ended[:3]), sorted(ended[3:]), most) == (["a", "b", "c"], ["left", "right"], 3)


def died(taken: Sequence[Phase], then: Phase) -> World:
    """After `taken` the rollout worker's engine died, and phase `then` was taken."""

    async def use() -> World:
        world = World()
        await world.take(*taken)
        world.rollout.die()
        await world.take(then)
        return world

    return asyncio.run(use())


def test_a_rollout_worker_that_died_asleep_has_the_trainer_make_room_for_its_start() -> None:
    world = died(("sync", "sample", "judge", "train"), "sync")
    assert world.gpu.held == {"rollout-0": {"weights"}, "trainer": {"all"}}
    assert world.gpu.happened[-5:] == [
        *("trainer asleep", "rollout-0 kv_cache+weights", "rollout-0 asleep"),
        *sorted(("trainer all", "rollout-0 weights"), key=world.gpu.happened[-2:].index),
    ]


def test_a_rollout_worker_that_dies_between_the_weights_and_the_sample_wants_them_again() -> None:
    assert died(("sync",), "sample").turns.needs_sync()


def test_a_phase_that_is_taken_twice_has_those_that_died_in_it_opened() -> None:
    assert died(("sync",), "sync").gpu.held == {"rollout-0": {"weights"}, "trainer": {"all"}}


def test_an_engine_that_wakes_with_other_weights_is_ended_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: actor.die())

    async def use(times: int) -> World:
        world = World()
        await world.take("sync", "sample")
        world.critic.wrong = times
        await world.take("judge")
        return world

    assert asyncio.run(use(1)).gpu.held == {"critic-0": {"weights", "kv_cache"}}
    assert caplog.messages.count("critic-0 woke otherwise: it is ended, and starts again") == 1
    assert asyncio.run(use(9)).gpu.held == {}
    assert caplog.messages[-1] == "critic-0 comes no more"  # and others are asked


def test_a_rollout_worker_that_comes_no_more_is_a_loss() -> None:
    async def use() -> None:
        world = World()
        world.rollout.restarts = -1
        await world.take("sync")

    with pytest.raises(ActorDiedError):
        asyncio.run(use())


def test_a_critic_that_dies_in_its_turn_is_opened_again_in_it() -> None:
    async def use() -> None:
        world = World()
        await world.take("sync", "sample", "judge")
        async with world.turns.kept():
            world.critic.die()
            world.critic.dies_at["opened"] = 1  # it takes a while
            while "critic-0" not in world.gpu.held:
                await asyncio.sleep(0.01)
        await world.take("train")
        assert set(world.gpu.held) == {"trainer"}

    asyncio.run(asyncio.wait_for(use(), 20))


def test_a_rollout_worker_that_is_opened_again_in_its_turn_has_no_weights() -> None:
    async def use() -> None:
        world = World()
        await world.take("sync", "sample")
        async with world.turns.kept():
            world.rollout.die()
            while not world.rollout.open_:
                await asyncio.sleep(0.01)
        assert world.turns.needs_sync()

    asyncio.run(asyncio.wait_for(use(), 20))


def test_one_that_cannot_start_in_the_middle_of_its_turn_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        world = World({phase: frozenset({"rollout", "critic"}) for phase in NEEDED})
        world.gpu.room = 2
        await world.take("judge")
        world.critic.do_open = fails  # type: ignore[method-assign]
        async with world.turns.kept():
            world.critic.die()
            while not world.critic.asked["open"]:
                await asyncio.sleep(0.01)
            before = world.rollout.asked["opened"]
            while world.rollout.asked["opened"] < before + 3:
                await asyncio.sleep(0.01)
        assert world.critic.asked["open"] == 1

    asyncio.run(asyncio.wait_for(use(), 20))
    assert caplog.messages.count("critic-0 could not start: ValueError: no room") == 1
    assert caplog.messages.count("critic-0: started again, in the middle of its turn") == 1


def test_a_turn_that_was_given_up_on_the_way_is_taken_anew() -> None:
    async def use() -> World:
        world = World()
        await world.take("sync", "sample")
        going = asyncio.ensure_future(world.take("judge"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert world.turns.phase is None
        await world.turns.with_trainer()
        return world

    assert set(asyncio.run(use()).gpu.held) == {"trainer"}


class Team:
    def __init__(self, world: World) -> None:
        self.actors = {"rollout-0": world.rollout, "critic-0": world.critic}

    async def ready(self) -> None:
        pass


def started(world: World) -> Awaitable[None]:
    async def start() -> None:
        world.gpu.happened.append("trainer starts")

    del world.gpu.held["trainer"]
    world.trainers.start = start  # type: ignore[attr-defined]
    team: Any = Team(world)
    trainers: Any = world.trainers
    return start_all(compose(["+experiment=tiny_cpu", "cluster.sharing=turns"]), team, trainers)


def test_engines_start_asleep_and_ranks_after_them() -> None:
    world = World(open_=False)
    world.gpu.now = lambda who, parts, **_: world.gpu.happened.append(who)  # type: ignore[method-assign]
    asyncio.run(started(world))  # type: ignore[arg-type]
    assert world.rollout.open_ and world.critic.open_ and not world.gpu.held
    assert world.gpu.happened[-1] == "trainer starts"


def test_an_engine_that_cannot_start_is_named() -> None:
    world = World(open_=False)
    world.critic.do_open = fails  # type: ignore[method-assign]
    world.gpu.now = lambda who, parts, **_: None  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="critic-0 could not start: ValueError: no room"):
        asyncio.run(started(world))  # type: ignore[arg-type]


@pytest.mark.parametrize("joined", [False, True])
def test_who_stays_awake_is_as_planned_and_nobody_where_gpus_are_not_known(
    joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a GPU to ask."""
    monkeypatch.setattr("capo_ray.planning.machine.gpu_sizes", list)
    sizes = ["+experiment=qwen1_5b_intersection", "+size=one_gpu_80gb"]
    small = ["rollout.gpu_memory_share=0.3", "critic.gpu_memory_share=0.3", "cluster.address=h:1"]
    config = compose([*sizes, *small[: 2 + joined]])
    actors: Any = {role: {actor_name(role, 0): None} for role in ("rollout", "critic")}
    trainers: Any = None
    turns: Any = turns_for(config, actors["rollout"], actors["critic"], trainers)
    assert turns.judges_later is joined


def test_the_base_of_those_who_sample_judges_after_them_and_nobody_sleeps_between() -> None:
    """As far as its engines go that is how servers judge in turns, but for the canaries, which are waited for."""
    given = ["+experiment=tiny_cpu", "cluster.sharing=turns", "trainer.lora.rank=8", "critic=base"]
    config = compose([*given, "critic.window=null"])
    world, trainers = World(), World().trainers
    trainers.gpu = world.gpu
    made: Any = turns_for(config, {"rollout-0": world.rollout}, {}, trainers)  # type: ignore[arg-type]
    assert made.judges_later

    async def use() -> list[str]:
        await made.take("sync")
        await made.take("sample")
        before = len(world.gpu.happened)
        await made.take("judge")
        assert not made.needs_sync()
        return world.gpu.happened[before:]

    assert asyncio.run(use()) == []
    server = compose(["+experiment=tiny_cpu", "cluster.sharing=turns", "critic=truth"])
    asked: Any = turns_for(server, {"rollout-0": world.rollout}, {}, trainers)  # type: ignore[arg-type]
    assert not asked.judges_later


async def fails() -> None:
    raise RayTaskError("open", "", ValueError("no room")).as_instanceof_cause()


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
