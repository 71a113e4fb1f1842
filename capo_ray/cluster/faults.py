"""What Ray's errors hide: the cause in the actor's own words, and whether an actor was lost or something went wrong.

Leaves out what is done about a fault (the pools, the trainer group and restarts decide that).
"""

from __future__ import annotations

from ray.exceptions import (
    ActorPlacementGroupRemoved,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)

from capo_ray.engines.receivers import ReceiverFailed

LOSSES = (
    *(RayActorError, ObjectLostError, OutOfMemoryError, WorkerCrashedError),
    *(NodeDiedError, LocalRayletDiedError, TaskPlacementGroupRemoved, ActorPlacementGroupRemoved),
)


class NotEnough(RuntimeError):
    """The cluster cannot hold the run."""


class MustMove(RuntimeError):
    """Machines of a run are told to go, and it is to go on without them: no loss, and nothing that went wrong."""


class SessionLost(RuntimeError):
    """The Ray session that a run works in is gone, or what holds it together."""


def cause_of(error: BaseException) -> str:
    """One or a few lines: what happened first, where, and where its log is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, RayActorError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:1] + lines[-3:]) if "creation task" in lines[0] else " ".join(lines[:8])
    if isinstance(error, RayError):  # one for lack of memory goes on for sixty lines: of the store, of every process
        return f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"
    return f"{type(error).__name__}: {error}"


def unwrap(error: BaseException) -> BaseException:
    """The exception that was raised in the actor, out of Ray's wrapping."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def is_loss(error: BaseException) -> bool:
    """Whether nothing went wrong but that an actor, what it held, or what it ran on is gone. All of a group must
    say so."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_loss(member) for member in error.exceptions)
    error = unwrap(error)
    if isinstance(error, ReceiverFailed):
        return is_loss(error.cause)
    return isinstance(error, (*LOSSES, SessionLost))
