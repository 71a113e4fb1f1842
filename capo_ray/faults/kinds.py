"""What is done to a run, and what the run promises then: the failure policy of docs/architecture.md, as a table.

Leaves out how it is done (strike) and in which order (plan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Act = Literal["kill", "freeze", "slow", "fill the disk", "make read-only", "cut", "drop packets", "take memory"]
Moment = Literal["step", "sync", "save"]
"""Any time between two steps; while weights are on their way; while a checkpoint is written."""
Then = Literal["goes on", "is borne", "ends"]
"""Two further steps; two further steps with nobody lost or ended; an error, and resumed after the remedy."""

ROLLOUT, CRITIC, TRAINER, AGGREGATOR = "RolloutActor", "CriticActor", "TrainerActor", "AggregatorActor"
ENGINE = "VLLM::"
LOST = r"was lost: "
GONE = rf"{LOST}|its head is gone"
"""The first is said when the session has ended, which takes a minute and more after its network was away."""
NOTICED_S, RECOVERED_S = 60.0, 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault."""

    name: str
    act: Act
    target: tuple[str, ...] = ()
    """What is in the name of a process, of one below it, and so on; of a folder its name."""
    then: Then = "goes on"
    says: str = ""
    """What a line of the run has that names it, as a regular expression."""
    metrics: tuple[str, ...] = ()
    """One of these grows in metrics.jsonl."""
    moment: Moment = "step"
    noticed_s: float = NOTICED_S
    recovered_s: float = RECOVERED_S
    lasts_s: float = 0.0
    """How long it lasts, where it does not last until somebody ends it."""

    @property
    def promise(self) -> str:
        if self.then == "is borne":
            return f"nobody is ended in {self.lasts_s:g} s"
        if self.then == "ends":
            return f"error within {self.noticed_s:g} s; resumed"
        return f"named within {self.noticed_s:g} s, two steps on within {self.recovered_s:g} s"


def _of_actors() -> list[Kind]:
    found = []
    for role, actor, died, metrics in (
        ("rollout worker", ROLLOUT, r"rollout worker \d+ died", ("run/rollout_deaths", "run/restarts")),
        ("critic", CRITIC, r"left alone for .* critic", ("critic/retries", "critic/engines_down", "run/restarts")),
    ):
        for what, target in ((f"{role}'s actor", (actor,)), (f"{role}'s engine", (actor, ENGINE))):
            silent = rf"{role.split()[0]}-\d+ has answered nothing"
            found += [
                Kind(name=f"kill a {what}", act="kill", target=target, says=f"{died}|{LOST}", metrics=metrics),
                Kind(name=f"freeze a {what}", act="freeze", target=target, says=silent, metrics=metrics),
            ]
    restarts = ("run/restarts",)
    for name, hit, silent in (
        ("the aggregator", AGGREGATOR, "aggregator-0 has answered nothing"),
        ("a trainer rank", TRAINER, r"trainer-\d+ has answered nothing"),
    ):
        moments: tuple[Moment, ...] = ("step", "sync", "save") if hit == TRAINER else ("step",)
        for moment in moments:
            during = "" if moment == "step" else f" in a {moment}"
            common = {"target": (hit,), "metrics": restarts, "moment": moment}
            found += [
                Kind(name=f"kill {name}{during}", act="kill", says=LOST, **common),  # type: ignore[arg-type]
                Kind(name=f"freeze {name}{during}", act="freeze", says=silent, **common),  # type: ignore[arg-type]
            ]
    return found


def _of_ray() -> list[Kind]:
    """A frozen raylet or head is noticed by Ray's own health checks, which take longer."""
    found = []
    for name, process in (("the raylet", "raylet"), ("Ray's head", "gcs_server")):
        found += [
            Kind(name=f"kill {name}", act="kill", target=(process,), says=GONE, metrics=("run/restarts",)),
            Kind(
                name=f"freeze {name}", act="freeze", target=(process,), says=GONE, metrics=("run/restarts",),
                noticed_s=120, recovered_s=240,
            ),
        ]  # fmt: skip
    return found


def _slow() -> list[Kind]:
    return [
        Kind(name=f"slow {name}", act="slow", target=target, then="is borne", lasts_s=50)
        for name, target in (
            ("a rollout worker's engine", (ROLLOUT, ENGINE)),
            ("a critic's engine", (CRITIC, ENGINE)),
            ("a trainer rank", (TRAINER,)),
            ("the aggregator", (AGGREGATOR,)),
        )
    ]


def _of_the_machine() -> list[Kind]:
    return [
        Kind(name="kill wandb", act="kill", target=("wandb-core",), says="wandb "),
        Kind(name="freeze wandb", act="freeze", target=("wandb-core",), says="wandb "),
        Kind(name="fill the disk", act="fill the disk", then="ends", says="^error: "),
        *(
            Kind(name=f"make {folder}/ read-only", act="make read-only", target=(folder,), then="ends", says="^error: ")
            for folder in ("checkpoints", "samples")
        ),
        Kind(name="cut the network for 1 s", act="cut", then="is borne", lasts_s=1),
        Kind(name="cut the network for 20 s", act="cut", says=GONE, metrics=("run/restarts",), lasts_s=20),
        Kind(name="drop packets", act="drop packets", then="is borne", lasts_s=20),
        Kind(
            name="take memory",
            act="take memory",
            says=rf"{LOST}|rollout worker \d+ died|left alone for .* critic",
            metrics=("run/rollout_deaths", "run/restarts", "critic/retries", "critic/engines_down"),
        ),
    ]


KINDS = {kind.name: kind for kind in (*_of_actors(), *_of_ray(), *_slow(), *_of_the_machine())}
