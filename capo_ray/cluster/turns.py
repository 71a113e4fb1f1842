"""Rollout engines, critics and the trainer hold the same GPUs one after the other within a training step.

A step has phases (planning.turns); whoever has no part in one sleeps before those wake who have. A rollout engine drops
its weights when it sleeps, so a phase of sampling is only ever entered from one in which weights have come. An actor
that was started again is an engine that was never opened (engines.sleeper): it is opened when its turn comes, while all
others sleep, for vLLM measures the whole GPU. Leaves out what is done in a phase, and in which order (crew).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from capo_ray.cluster.faults import cause_of, unwrap
from capo_ray.cluster.patience import when_up, with_patience
from capo_ray.cluster.placement import Team
from capo_ray.cluster.trainer_group import TrainerGroup
from capo_ray.config.run import Config
from capo_ray.engines.protocols import WHOLE, NotItsTurn, Part, WeightsChanged
from capo_ray.planning.bundles import Role, seats
from capo_ray.planning.machine import this_machine
from capo_ray.planning.plan import ASSUMED_GPU_GIB, shapes_here
from capo_ray.planning.turns import Phase, awake
from capo_ray.types import Metrics

log = logging.getLogger(__name__)

TAKING_TURNS: frozenset[Role] = frozenset({"rollout", "critic", "trainer"})
LOOK_S = 5.0
"""Between two looks for engines that were started again in the middle of their phase."""


class Turns(Protocol):
    """Who is awake, as the crew sees it."""

    phase: Phase | None
    judges_later: bool
    """Whether critics cannot judge while others sample."""

    async def take(self, phase: Phase) -> None:
        """Returns when those are awake whose phase it is, and nobody else."""
        ...

    def needs_sync(self) -> bool:
        """Whether the rollout engines have slept since weights came."""
        ...

    async def with_trainer(self) -> None:
        """Returns when the trainer is awake, whatever phase that takes."""
        ...

    def kept(self) -> AbstractAsyncContextManager[None]:
        """A context in which engines of this phase that are started again are opened again."""
        ...

    def take_seconds(self) -> Metrics:
        """What taking turns took since the last call."""
        ...


class AllAwake:
    """Turns of roles that have GPUs of their own."""

    phase: Phase | None = None
    judges_later = False

    async def take(self, phase: Phase) -> None:
        pass

    def needs_sync(self) -> bool:
        return False

    async def with_trainer(self) -> None:
        pass

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        yield

    def take_seconds(self) -> Metrics:
        return {}


@dataclass(frozen=True, slots=True)
class Engine:
    role: Role
    name: str
    actor: Any
    gpus: Sequence[int]
    """Numbers of those that it shares."""


class InTurn:
    """Turns of roles that share all GPUs. Lives on the driver's event loop."""

    def __init__(
        self,
        awake: Mapping[Phase, Collection[Role]],
        *,
        engines: Collection[Engine],
        trainers: TrainerGroup,
        base_judges: bool = False,
        look_s: float = LOOK_S,
    ) -> None:
        """`awake`: who is, in each phase; who is in all never sleeps. To begin with all `engines` sleep, and the
        trainer does not. `base_judges`: on the engines that sample, once they have."""
        self.phase: Phase | None = "train"
        judged = base_judges or any(engine.role == "critic" for engine in engines)
        self.judges_later = judged and "critic" not in awake["sample"]
        self._awake = awake
        self._stays = frozenset(TAKING_TURNS.intersection(*map(frozenset, awake.values())))
        self._has_weights = False
        self._engines = list(engines)
        self._trainers = trainers
        self._look_s = look_s
        self._changing = asyncio.Lock()
        self._seconds = {"sleep": 0.0, "wake": 0.0}

    async def take(self, phase: Phase) -> None:
        async with self._changing:
            if phase == self.phase and not await self._unopened(phase):
                return
            log.debug("phase %s after %s", phase, self.phase)
            self.phase = None
            while True:
                await self._open(phase)
                with self._timed("sleep"):
                    await self._sleep(TAKING_TURNS - frozenset(self._awake[phase]))
                with self._timed("wake"):
                    if await self._wake(phase):
                        break
            self.phase, self._has_weights = phase, self._has_weights or phase == "sync"

    def needs_sync(self) -> bool:
        return not self._has_weights

    async def with_trainer(self) -> None:
        if self.phase is None or "trainer" not in self._awake[self.phase]:
            await self.take("train")

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        keeping = asyncio.ensure_future(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def take_seconds(self) -> Metrics:
        made = {f"turns/{what}_s": seconds for what, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return made

    def _of(self, phase: Phase) -> list[Engine]:
        return [engine for engine in self._engines if engine.role in self._awake[phase]]

    async def _unopened(self, phase: Phase) -> list[Engine]:
        """Of those whose turn it is; they were started again."""
        engines = self._of(phase)
        there = await asyncio.gather(*map(self._is_open, engines))
        return [engine for engine, is_open in zip(engines, there, strict=True) if not is_open]

    async def _is_open(self, engine: Engine) -> bool:
        """Once Ray has started its actor again, if it died. A critic that comes no more has no turns any more: others
        are asked in its place (critics.routing). Raises ActorDiedError of a rollout worker that comes no more."""
        while True:
            try:
                await when_up(engine.actor, f"{engine.name} to start again")
            except ActorDiedError:
                if engine.role != "critic":
                    raise
                log.error("%s comes no more", engine.name)
                self._engines.remove(engine)
                return True
            if (is_open := await _unless_lost(engine.actor.opened.remote())) is not None:
                return bool(is_open)

    async def _open(self, phase: Phase) -> None:
        """Open those whose turn it is that are not; afterwards they sleep like all others, if there were any."""
        if new := await self._unopened(phase):
            names = ", ".join(engine.name for engine in new)
            log.warning("%s: started again; everybody else sleeps until the engine is open", names)
            with self._timed("sleep"):
                await self._sleep(TAKING_TURNS)
            with self._timed("wake"):
                await one_at_a_time(new, lambda engine: _unless_lost(_open_in_turn(engine)))

    async def _sleep(self, roles: Collection[Role]) -> None:
        """A trainer that does not gives back what its last work left with its allocator: others' memory is next."""
        self._has_weights &= "rollout" not in roles
        trainer = self._trainers.sleep() if "trainer" in roles else self._trainers.give_back()
        await asyncio.gather(trainer, *(_sleeps(engine) for engine in self._engines if engine.role in roles))

    async def _wake(self, phase: Phase) -> bool:
        """Whether all are awake; not where one died, or had to be ended."""
        parts: Collection[Part] = ("weights",) if phase == "sync" and "rollout" not in self._stays else WHOLE
        trainer = [self._trainers.wake()] if "trainer" in self._awake[phase] else []
        woken, _ = await asyncio.gather(
            asyncio.gather(*(_woken(engine, parts) for engine in self._of(phase))), asyncio.gather(*trainer)
        )
        return all(woken)

    async def _keep(self) -> None:
        """Until it is cancelled. One that cannot start is left alone: at its next turn that ends the run."""
        left = set[str]()
        while True:
            await asyncio.sleep(self._look_s)
            async with self._changing:
                engines = self._of(self.phase) if self.phase else []
                kept = [engine for engine in engines if engine.name not in left]
                await one_at_a_time(kept, lambda engine: self._open_again(engine, left))

    async def _open_again(self, engine: Engine, left: set[str]) -> None:
        """If it was started again; into `left` goes who cannot start."""
        try:
            if not await engine.actor.opened.remote():
                log.warning("%s: started again, in the middle of its turn", engine.name)
                self._has_weights &= engine.role != "rollout"
                await with_patience(engine.actor.open.remote(), f"{engine.name} to start")
        except RayTaskError as error:
            log.error("%s could not start: %s", engine.name, cause_of(error))
            left.add(engine.name)
        except RayError as error:  # not there yet, or never again: whoever asks it finds out
            log.debug("%s is not there: %s", engine.name, cause_of(error))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = monotonic()
        try:
            yield
        finally:
            self._seconds[what] += monotonic() - begun


def turns_for(config: Config, rollouts: Mapping[str, Any], critics: Mapping[str, Any], trainers: TrainerGroup) -> Turns:
    """The actors by name, after `start_all`."""
    if config.cluster.sharing != "turns":
        return AllAwake()
    who = awake(config, shapes_here(config), this_machine(config.cluster).gpu_gib or ASSUMED_GPU_GIB)
    base = config.base_critic is not None
    return InTurn(who, engines=engines_of(config, {**rollouts, **critics}), trainers=trainers, base_judges=base)


def engines_of(config: Config, actors: Mapping[str, Any]) -> list[Engine]:
    """`actors` by name, of rollout workers and critics."""
    taking = [seat for seat in seats(config)[1] if seat.role in ("rollout", "critic")]
    return [Engine(seat.role, seat.name, actors[seat.name], seat.shares) for seat in taking]


async def start_all(config: Config, team: Team, trainers: TrainerGroup) -> None:
    """Returns when everybody is there that `team` has hired. Where ranks share GPUs with engines they load after them,
    and where engines share them, each sleeps before the next is opened: vLLM measures the whole GPU while it starts."""
    if config.cluster.sharing == "apart":
        await asyncio.gather(team.ready(), trainers.start())
        return
    await team.ready()
    if config.cluster.sharing == "turns":
        await one_at_a_time(engines_of(config, team.actors), _open_in_turn)
    await trainers.start()


async def one_at_a_time(engines: Iterable[Engine], do: Callable[[Engine], Awaitable[None]]) -> None:
    """`do` with each of `engines`, side by side but where two share a GPU."""
    gpus: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def alone(engine: Engine) -> None:
        async with AsyncExitStack() as held:
            for gpu in sorted(engine.gpus):
                await held.enter_async_context(gpus[gpu])
            await do(engine)

    await asyncio.gather(*map(alone, engines))


async def _open_in_turn(engine: Engine) -> None:
    """Open an engine and put it to sleep. Raises RuntimeError where it cannot start, and RayActorError."""
    try:
        await with_patience(engine.actor.open.remote(), f"{engine.name} to start")
        await with_patience(engine.actor.sleep.remote(), f"{engine.name} to fall asleep")
    except RayTaskError as error:
        raise RuntimeError(f"{engine.name} could not start: {cause_of(error)}") from error


async def _sleeps(engine: Engine) -> None:
    """One that died holds nothing, and comes back asleep; one that is but out of reach is told again."""
    with suppress(ActorDiedError):
        while True:
            try:
                return await with_patience(engine.actor.sleep.remote(), f"{engine.name} to fall asleep")
            except ActorUnavailableError:
                await when_up(engine.actor, f"{engine.name} to be within reach")


async def _woken(engine: Engine, parts: Collection[Part]) -> bool:
    """Whether it is; not where it died, or woke with other weights and was ended. Raises what else it raises."""
    try:
        await with_patience(engine.actor.wake.remote(parts), f"{engine.name} to wake")
        return True
    except RayActorError:
        return False
    except RayTaskError as error:
        cause = unwrap(error)
        if isinstance(cause, WeightsChanged):
            log.error("%s: it is ended, and starts again", cause)
            ray.kill(engine.actor, no_restart=False)
        elif not isinstance(cause, NotItsTurn):  # it has died and is there again, not open
            raise
        return False


async def _unless_lost(asked: Awaitable[Any]) -> Any:
    """What is answered; None where the actor is lost."""
    try:
        return await asked
    except RayActorError:
        return None
