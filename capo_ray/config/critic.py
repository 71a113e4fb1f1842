"""The critics of a run: what runs them, how they are asked, and what is done when they fail. Leaves out what their
votes are worth (see `config.method`)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, model_validator

from capo_ray import extension
from capo_ray.config.block import MOST_PROCESSES, Block, or_own, setting
from capo_ray.config.library import CriticOptions
from capo_ray.config.model import Model


def _check_name(name: str) -> str:
    """The name of an environment variable. Its error never repeats it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII) or _looks_like_a_key(name):
        raise ValueError(
            "must be the name of an environment variable, such as OPENAI_API_KEY, and the value given (not shown) is "
            "none or looks like a key; put the key into a variable (export MY_KEY=...) and name that, or null for none"
        )
    return name


def _looks_like_a_key(name: str) -> bool:
    """Whether a word of it is as long and mixed as no word of a name is."""
    words = name.split("_")
    mixed = any(len(word) >= 16 and re.search("[0-9]", word) for word in words)
    return mixed or any(len(word) >= 32 for word in words) or bool(re.match("(?:sk|pk|gsk|xai|hf|nvapi)_", name))


class Voter(Block):
    """A critic: the frozen model that judges, and what runs it. Either vLLM engines of this run or servers; to compare
    with, the tiny world has one that knows the truth, and any data one that knows nothing."""

    kind: Annotated[str, *or_own(Literal["vllm", "base", "http", "truth", "placebo"])] = setting(
        "`vllm`: engines that this run starts; `base`: the model beneath the policy's adapter, on the engines that "
        "sample, see [lora.md](lora.md#the-base-as-critic); `http`: servers that speak OpenAI's chat completions; "
        "`truth`: flags what is wrong and nothing else (tiny world only); `placebo`: flags steps at random, of any "
        "data; `module:name`: an engine of your own, see [extending.md](extending.md#a-critic)",
        "vllm",
    )
    flag_share: float = setting("share of the steps that a `placebo` flags", 0.2, unit="share", ge=0, le=1)
    model: Model | None = setting("the frozen model that judges (vllm only)", None, source="CAPO")
    workers: int = setting("engines that judge (vllm only)", 1, unit="engines", ge=1, le=MOST_PROCESSES)
    tensor_parallel: int = setting(
        "GPUs per worker (vllm only)", 1, unit="GPUs", source="vLLM `tensor_parallel_size`", ge=1, le=MOST_PROCESSES
    )
    endpoints: tuple[str, ...] = setting(
        "base addresses of the servers, such as http://host:8000/v1 (http only)", (), source="OpenAI API"
    )
    served_model: str | None = setting(
        "name that the servers have for the model (http only)", None, source="OpenAI API `model`"
    )
    api_key_env: Annotated[str, AfterValidator(_check_name)] | None = setting(
        "environment variable of the key; null, or unset: no key is sent (http only)",
        "OPENAI_API_KEY",
        source="OpenAI API",
    )
    leave_out: tuple[Literal["seed", "temperature", "top_p"], ...] = setting(
        "fields of a request that the servers do not take; their own values apply then (http only). Seed and top-p are "
        "never sent at temperature 0",
        (),
        source="OpenAI API",
    )
    max_sequences: int = setting(
        "sequences in flight per worker or server", 256, unit="sequences", source="vLLM `max_num_seqs`", gt=0
    )
    window: int | None = setting(
        "context window in tokens; null: the model's own", None, unit="tokens", source="vLLM `max_model_len`", gt=0
    )
    gpu_memory_share: float = setting(
        "share of a GPU that an engine may take (vllm only)",
        0.9,
        unit="share",
        source="vLLM `gpu_memory_utilization`",
        gt=0,
        le=1,
    )
    kv_cache_gib: int = setting(
        "KV cache of a worker on CPU, GiB (vllm only)", 1, unit="GiB", source="vLLM `VLLM_CPU_KVCACHE_SPACE`", gt=0
    )
    eager: bool = setting("no CUDA graphs and no compilation (vllm only)", False, source="vLLM `enforce_eager`")
    engine: CriticOptions = setting(
        "further options of vLLM's engines, by vLLM's names (vllm only), see "
        "[extending.md](extending.md#options-of-the-libraries)",
        {},
        source="vLLM `EngineArgs`",
    )
    same_critic: bool = setting(
        "more engines for the critic before this one: they run the same model, share its critiques and "
        "stand in for one another (`others` only)",
        False,
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        {"http": _check_http, "vllm": _check_vllm}.get(self.kind, _check_no_model)(self)
        if self.engine and self.kind != "vllm":
            raise ValueError(
                f"`engine` holds options of vLLM's engines, and `kind` {self.kind} starts none; leave it out"
            )
        return self

    @property
    def known_window(self) -> int | None:
        """Tokens of the context window, where the configuration says so."""
        return self.window or (self.model.shape.window if self.model and self.model.shape else None)


def _check_vllm(voter: Voter) -> None:
    if voter.model is None:
        raise ValueError(
            "`model` must be set when `kind` is vllm; pass model.path=FOLDER_OR_ID, or kind: http; an experiment "
            "without a critic, such as GRPO, takes no setting of one"
        )
    if voter.endpoints or voter.served_model or voter.leave_out:
        raise ValueError(
            "`endpoints`, `served_model` and `leave_out` are for kind http, and `kind` is vllm; start from critic=http"
        )


def _check_no_model(voter: Voter) -> None:
    of_server = voter.endpoints or voter.served_model or voter.leave_out
    if voter.model is not None or of_server or voter.workers != 1:
        raise ValueError(
            "`model`, `workers`, `endpoints`, `served_model` and `leave_out` have no meaning where `kind` is "
            f"{voter.kind}; start from critic={'own' if extension.is_own(voter.kind) else voter.kind}"
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
            "'critic.endpoints=[http://HOST:8000/v1]' critic.served_model=NAME"
        )
    for endpoint in voter.endpoints:
        address = urlsplit(endpoint)
        odd = address.query or address.fragment or re.search(r"\s", endpoint) or not _has_port(address)
        if address.scheme not in ("http", "https") or not address.hostname or odd:
            raise ValueError(
                f"`endpoints` must be base addresses such as http://host:8000/v1, got {re.split('[?#]', endpoint)[0]!r}"
            )
        if address.username is not None:
            raise ValueError(
                f"`endpoints` must hold no credentials ({address.hostname} has some): the key goes into the "
                "environment, see `api_key_env`"
            )
    if len(set(voter.endpoints)) < len(voter.endpoints):
        raise ValueError(f"`endpoints` names a server twice: {list(voter.endpoints)}")


def _has_port(address: SplitResult) -> bool:
    """Whether its port, where it has one, is one."""
    try:
        return address.port != 0
    except ValueError:
        return False


class Canaries(Block):
    """Responses with known wrong steps that are judged beside the run's own, to see what its critics are worth."""

    source: str = setting(
        "`arithmetic`: of the tiny world, labelled exactly; else a file or folder in ProcessBench's layout",
        source="ProcessBench",
    )
    rate: float = setting("canaries per response of the run", 0.02, unit="share", gt=0, le=1)
    min_precision: float = setting(
        "the run warns when precision over the last canaries is lower; 0: never", 0.0, unit="share", ge=0, le=1
    )
    min_recall: float = setting("the same of recall", 0.0, unit="share", ge=0, le=1)


class Critic(Voter):
    """The critic pool: frozen models that write critiques (docs/algorithm.md section 3)."""

    others: tuple[Voter, ...] = setting(
        "more critics, which vote beside this one: of m critics critique i is written by number i mod m; "
        "or, with `same_critic`, more engines of one",
        (),
    )
    critiques: int = setting("k: critiques per response", 4, unit="critiques", source="CAPO", ge=1, le=1000)
    adaptive: bool = setting("stop asking for critiques when the vote is decided whatever they say", False)
    first_round: int = setting(
        "adaptive: critiques to ask for at first; more where so few can decide nothing", 2, unit="critiques", ge=1
    )
    full_share: float = setting(
        "adaptive: share of responses judged in full, on which agreement is measured", 0.05, unit="share", ge=0, le=1
    )
    cache: int = setting(
        "responses whose critiques are kept per aggregator shard, for equal ones that come later; 0: none",
        0,
        unit="responses",
        ge=0,
    )
    tokens_per_step: int | None = setting(
        "tokens that critics may write in a step, about; null: no bound", None, unit="tokens", gt=0
    )
    template: str = setting(
        "`paper`: the full instructions; `brief`: what the tiny critic was taught; else a Jinja file of "
        "your own, see [critics.md](critics.md#your-own-critic-prompt)",
        "paper",
        source="CAPO",
    )
    reference: Literal["solution", "answer", "none"] = setting(
        "what the critic is shown of the right solution; where the data lacks it, the next best",
        "solution",
        source="CAPO",
    )
    max_critique_tokens: int = setting(
        "tokens after which a critique is cut off", 2048, unit="tokens", source="CAPO", gt=0
    )
    temperature: float = setting("of sampling; 0: greedy", 0.7, unit="none", source="CAPO", ge=0)
    top_p: float = setting("nucleus of sampling; 1: off", 0.9, unit="probability", source="CAPO", gt=0, le=1)
    deadline_s: float = setting(
        "most seconds that one try may take; less once the engine's speed has been measured",
        600.0,
        unit="seconds",
        gt=0,
    )
    deadline_floor_s: float = setting(
        "least seconds that one try is given, however fast it was", 30.0, unit="seconds", gt=0
    )
    attempts: int = setting("engines that one request is tried on before it fails", 3, unit="engines", ge=1)
    outage_s: float = setting(
        "seconds that every engine may be down before `on_outage` acts", 60.0, unit="seconds", gt=0
    )
    on_outage: Literal["wait", "outcome_only"] = setting(
        "`wait`: training waits for a critic to come back; `outcome_only`: it goes on, and a group with "
        "responses that nobody could judge gets outcome rewards alone",
        "wait",
    )
    outage_limit_s: float = setting(
        "seconds after which an outage that is waited for stops the run", 3600.0, unit="seconds", gt=0
    )
    max_failed_share: float = setting(
        "a share of failed critiques above this is a warning at the end of a step, and ends the run at the end of the "
        "next one; 1: never",
        0.5,
        unit="share",
        gt=0,
        le=1,
    )
    failure_prompts: int = setting(
        "the failed share is taken over the last whole steps that have so many prompts", 16, unit="prompts", ge=1
    )
    canaries: Canaries | None = setting("see below; null: none are judged", None)

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
    def base(self) -> Voter | None:
        """The one that is the policy's base model."""
        return next((voter for voter in self.voters if voter.kind == "base"), None)

    @property
    def voters(self) -> tuple[Voter, ...]:
        """This critic and the others, those with `same_critic` too."""
        return (self, *self.others)


def voter_field(number: int) -> str:
    """Where critic `number` stands in the configuration."""
    return f"critic.others[{number - 1}]" if number else "critic"
