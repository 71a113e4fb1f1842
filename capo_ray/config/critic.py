"""The critics of a run: what runs them, how they are asked, and what is done when they fail. Leaves out what their
votes are worth (see `config.method`)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from capo_ray import extension
from capo_ray.config.blocks import Block, Model, or_own


class Voter(Block):
    """A critic: the frozen model that judges, and what runs it. Either vLLM engines of this run or servers; the tiny
    world has one that knows the truth and one that knows nothing, to compare with."""

    kind: Annotated[str, *or_own(Literal["vllm", "http", "truth", "placebo"])] = Field(
        "vllm",
        description="`vllm`: engines that this run starts; `http`: servers that speak OpenAI's chat completions; "
        "`truth`: flags what is wrong and nothing else, `placebo`: flags steps at random (both for the tiny world); "
        "`module:name`: an engine of your own, see [extending.md](extending.md#a-critic)",
    )
    flag_share: float = Field(0.2, ge=0, le=1, description="share of the steps that a `placebo` flags")
    model: Model | None = Field(None, description="the frozen model that judges (vllm only)")
    workers: int = Field(1, ge=1, description="engines that judge (vllm only)")
    tensor_parallel: int = Field(1, ge=1, description="GPUs per worker (vllm only)")
    endpoints: tuple[str, ...] = Field(
        (), description="base addresses of the servers, such as http://host:8000/v1 (http only)"
    )
    served_model: str | None = Field(None, description="name that the servers have for the model (http only)")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="environment variable of the key; null, or unset: no key is sent (http only)"
    )
    max_sequences: int = Field(256, gt=0, description="sequences in flight per worker or server")
    window: int | None = Field(None, gt=0, description="context window in tokens; null: the model's own")
    gpu_memory_share: float = Field(0.9, gt=0, le=1, description="share of a GPU that an engine may take (vllm only)")
    kv_cache_gib: int = Field(1, gt=0, description="KV cache of a worker on CPU, GiB (vllm only)")
    eager: bool = Field(False, description="no CUDA graphs and no compilation (vllm only)")
    same_critic: bool = Field(
        False,
        description="more engines for the critic before this one: they run the same model, share its critiques and "
        "stand in for one another (`others` only)",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        {"http": _check_http, "vllm": _check_vllm}.get(self.kind, _check_no_model)(self)
        return self

    @property
    def known_window(self) -> int | None:
        """Tokens of the context window, where the configuration says so."""
        return self.window or (self.model.shape.window if self.model and self.model.shape else None)


def _check_vllm(voter: Voter) -> None:
    if voter.model is None:
        raise ValueError("`model` must be set when `kind` is vllm; pass model.path=FOLDER_OR_ID, or kind: http")
    if voter.endpoints or voter.served_model:
        raise ValueError("`endpoints` and `served_model` are for kind http, and `kind` is vllm; start from critic=http")


def _check_no_model(voter: Voter) -> None:
    if voter.model is not None or voter.endpoints or voter.served_model or voter.workers != 1:
        raise ValueError(
            f"`model`, `workers`, `endpoints` and `served_model` have no meaning where `kind` is {voter.kind}; start "
            f"from critic={'own' if extension.is_own(voter.kind) else voter.kind}"
        )


def _check_http(voter: Voter) -> None:
    if voter.model is not None or (voter.workers, voter.tensor_parallel) != (1, 1):
        raise ValueError(
            "`model`, `workers` and `tensor_parallel` are for kind vllm, and `kind` is http, whose servers run the "
            "model; leave them out, or start from critic=http"
        )
    if not voter.endpoints or not voter.served_model:
        raise ValueError(
            "`endpoints` and `served_model` must be set when `kind` is http; pass "
            "critic.endpoints=[http://HOST:8000/v1] critic.served_model=NAME"
        )
    for endpoint in voter.endpoints:
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            raise ValueError(f"`endpoints` must be base addresses such as http://host:8000/v1, got {endpoint!r}")
        if address.username is not None:
            raise ValueError(
                f"`endpoints` must hold no credentials ({address.hostname} has some): the key goes into the "
                "environment, see `api_key_env`"
            )
    if len(set(voter.endpoints)) < len(voter.endpoints):
        raise ValueError(f"`endpoints` names a server twice: {list(voter.endpoints)}")


class Canaries(Block):
    """Responses with known wrong steps that are judged beside the run's own, to see what its critics are worth."""

    source: str = Field(
        description="`arithmetic`: of the tiny world, labelled exactly; else a file or folder in ProcessBench's layout"
    )
    rate: float = Field(0.02, gt=0, le=1, description="canaries per response of the run")
    min_precision: float = Field(
        0.0, ge=0, le=1, description="the run warns when precision over the last canaries is lower; 0: never"
    )
    min_recall: float = Field(0.0, ge=0, le=1, description="the same of recall")


class Critic(Voter):
    """The critic pool: frozen models that write critiques (docs/algorithm.md section 3)."""

    others: tuple[Voter, ...] = Field(
        (),
        description="more critics, which vote beside this one: of m critics critique i is written by number i mod m; "
        "or, with `same_critic`, more engines of one",
    )
    critiques: int = Field(4, ge=1, description="k: critiques per response")
    adaptive: bool = Field(False, description="stop asking for critiques when the vote is decided whatever they say")
    first_round: int = Field(
        2, ge=1, description="adaptive: critiques to ask for at first; more where so few can decide nothing"
    )
    full_share: float = Field(
        0.05, ge=0, le=1, description="adaptive: share of responses judged in full, on which agreement is measured"
    )
    cache: int = Field(
        0,
        ge=0,
        description="responses whose critiques are kept per aggregator shard, for equal ones that come later; 0: none",
    )
    tokens_per_step: int | None = Field(
        None, gt=0, description="tokens that critics may write in a step, about; null: no bound"
    )
    template: str = Field(
        "paper",
        description="`paper`: the full instructions; `brief`: what the tiny critic was taught; else a Jinja file of "
        "your own, see [operations.md](operations.md#your-own-critic-prompt)",
    )
    reference: Literal["solution", "answer", "none"] = "solution"
    max_critique_tokens: int = Field(2048, gt=0)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    deadline_s: float = Field(
        600.0, gt=0, description="most seconds that one try may take; less once the engine's speed has been measured"
    )
    deadline_floor_s: float = Field(30.0, gt=0, description="least seconds that one try is given, however fast it was")
    attempts: int = Field(3, ge=1, description="engines that one request is tried on before it fails")
    outage_s: float = Field(60.0, gt=0, description="seconds that every engine may be down before `on_outage` acts")
    on_outage: Literal["wait", "outcome_only"] = "wait"
    outage_limit_s: float = Field(
        3600.0, gt=0, description="seconds after which an outage that is waited for stops the run"
    )
    max_failed_share: float = Field(0.5, gt=0, le=1, description="failed critiques above this share stop the run")
    failure_window: int = Field(256, ge=1, description="critiques over which the failed share is taken")
    canaries: Canaries | None = Field(None, description="see below; null: none are judged")

    @model_validator(mode="after")
    def _check_others(self) -> Self:
        if self.same_critic:
            raise ValueError("`same_critic` is for `others`: there is no critic before the first")
        for before, voter in pairwise(self.voters):
            if voter.same_critic and voter.max_sequences != before.max_sequences:
                raise ValueError(
                    f"`others`: engines of one critic must have the same `max_sequences`, got {before.max_sequences} "
                    f"and, with `same_critic`, {voter.max_sequences}"
                )
        num_critics = sum(not voter.same_critic for voter in self.voters)
        if num_critics > self.critiques:
            raise ValueError(
                f"`others` makes {num_critics} critics and `critiques` is {self.critiques}: some would never be "
                "asked; raise `critiques` or name fewer"
            )
        return self

    @property
    def voters(self) -> tuple[Voter, ...]:
        """This critic and the others, those with `same_critic` too."""
        return (self, *self.others)


def voter_field(number: int) -> str:
    """Where critic `number` stands in the configuration."""
    return f"critic.others[{number - 1}]" if number else "critic"
