"""The whole configuration as frozen pydantic models, and the one door to Hydra.

Hydra composes YAML from `conf/`, `load` validates it once, before Ray starts; nothing else in the project reads YAML.
Each field says its meaning and unit beside it. Leaves out: what a machine can hold (see `plan`) and whether files that
are named exist and fit together (see `build`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from capo_ray import extension

Vote = Literal["intersection", "majority", "strict_majority", "union", "average", "greedy"]
ErrorSet = Literal["all", "from_first", "first"]
Returns = Literal["none", "suffix_sum", "suffix_min"]
OutcomeSource = Literal["verifier", "critic"]
Advantage = Literal["capo", "capo_mean", "capo_channels", "capo_batch", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
Surrogate = Literal["clip", "cispo", "gspo", "gspo_token"]


def _or_own(known: Any) -> tuple[AfterValidator, WithJsonSchema]:
    """For a field that takes one of the `known` names, or `module:name` of an object of the user's."""
    names = get_args(known)

    def check(name: str) -> str:
        if name not in names and not extension.is_own(name):
            raise ValueError(f"must be one of {', '.join(names)}, or module:name of your own, got {name!r}")
        return name

    return AfterValidator(check), WithJsonSchema({"enum": [*names, "module:name"], "type": "string"})


class ConfigError(ValueError):
    """The configuration is not one that can run; the message names the field, the value and what to do."""


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Shape(Block):
    """Shape of a decoder, so that plans and dry runs need no download."""

    parameters: int = Field(gt=0, description="number of parameters")
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    key_value_size: int = Field(gt=0, description="key heads times head size: what one token stores per layer, halved")
    vocabulary: int = Field(gt=0)
    window: int = Field(gt=0, description="tokens of prompt and response together")


class Model(Block):
    """A policy or a critic: where its weights are and what shape they have."""

    path: str = Field(
        description="folder, Hugging Face id, `asset:NAME` (shipped with the package) or `random` (of `shape`)"
    )
    tokenizer: str | None = Field(None, description="folder or id of the tokenizer; null: the model's own")
    shape: Shape | None = Field(None, description="null: read from the model's folder")
    system_prompt: str | None = Field(None, description="system message put before each question")
    chat_template: str | None = Field(
        None, description="Jinja template that conversations are rendered with; null: the tokenizer's own"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class Data(Block):
    """Where prompts come from."""

    kind: Literal["math", "arithmetic"] = Field(
        "math", description="`math`: problems of `path`, verified by math-verify; `arithmetic`: the tiny world, made up"
    )
    path: str | None = Field(
        None, description=".jsonl, .jsonl.gz or .parquet file, folder with a data set, or Hugging Face id (math only)"
    )
    subset: str | None = Field(None, description="configuration of a Hugging Face data set; null: its only one")
    split: str = Field("train", description="split of a Hugging Face data set")
    question_field: str = Field(
        "question", description="column of the question, or of chat messages; `a.b` is column b inside a"
    )
    answer_field: str = Field("answer", description="gold final answer, or a text that holds it")
    answer_boxed: bool = Field(False, description="the gold answer is in the last \\boxed{} of `answer_field`")
    answer_pattern: str | None = Field(None, description="regular expression whose first group is the gold answer")
    solution_field: str | None = Field(None, description="reference solution shown to the critic; null: none")
    id_field: str | None = Field(None, description="column of names that differ; null: FILE:NUMBER")
    limit: int | None = Field(None, gt=0, description="keep the first so many problems")
    operations: tuple[int, int] = Field((2, 4), description="arithmetic only: fewest and most operations of a problem")
    evaluation_prompts: int = Field(0, ge=0, description="held-out problems evaluated before and after the run")
    evaluation_path: str | None = Field(
        None, description="data set of the held-out problems, with the same columns; null: `path`"
    )
    evaluation_split: str | None = Field(
        None, description="its split; where both are null the held-out problems are drawn from those of training"
    )
    max_prompt_tokens: int = Field(256, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "math" and not self.path:
            raise ValueError("`path` must name a file or a data set when `kind` is math; pass data.path=FILE_OR_ID")
        if self.operations[0] < 1 or self.operations[0] > self.operations[1]:
            raise ValueError(
                f"`operations` must be [fewest, most] with 1 <= fewest <= most, got {list(self.operations)}"
            )
        if self.answer_pattern is not None:
            self._check_pattern(self.answer_pattern)
        return self

    def _check_pattern(self, pattern: str) -> None:
        if self.answer_boxed:
            raise ValueError("`answer_boxed` and `answer_pattern` both say where the gold answer is; leave one out")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"`answer_pattern` {pattern!r} is not a regular expression: {error}") from None
        if not groups:
            raise ValueError(f"`answer_pattern` {pattern!r} has no group; put the answer in one: (...)")


class Rollout(Block):
    """The rollout pool: vLLM engines that sample from the policy."""

    workers: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1, description="GPUs per worker")
    max_response_tokens: int = Field(gt=0)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, description="-1: off")
    max_sequences: int = Field(256, gt=0, description="sequences in flight per worker")
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    kv_cache_gib: int = Field(1, gt=0, description="KV cache of a worker on CPU, GiB")
    eager: bool = Field(False, description="no CUDA graphs and no compilation")


class Voter(Block):
    """A critic: the frozen model that judges, and what runs it. Either vLLM engines of this run or servers; the tiny
    world has one that knows the truth and one that knows nothing, to compare with."""

    kind: Literal["vllm", "http", "truth", "placebo"] = Field(
        "vllm",
        description="`vllm`: engines that this run starts; `http`: servers that speak OpenAI's chat completions; "
        "`truth`: flags what is wrong and nothing else, `placebo`: flags steps at random (both for the tiny world)",
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
            f"from critic={voter.kind}"
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
    """The critic pool: frozen models that write critiques (CAPO.md section 3)."""

    others: tuple[Voter, ...] = Field(
        (), description="more critics, which vote beside this one: of m critics critique i is written by number i mod m"
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
        if len(self.voters) > self.critiques:
            raise ValueError(
                f"`others` makes {len(self.voters)} critics and `critiques` is {self.critiques}: some would never be "
                "asked; raise `critiques` or name fewer"
            )
        return self

    @property
    def voters(self) -> tuple[Voter, ...]:
        """This critic and the others."""
        return (self, *self.others)


class Reward(Block):
    """From votes and outcomes to token rewards (CAPO.md sections 4 and 5)."""

    vote: Vote = "intersection"
    outcome_weight: float = Field(2.0, ge=0, description="C")
    process_weight: float = Field(1.0, ge=0, description="P")
    error_set: ErrorSet = "all"
    returns: Returns = "none"
    outcome: OutcomeSource = Field(
        "verifier", description="`critic`: GenORM, the share of critiques that say Yes in place of the verifier"
    )
    format_weight: float = Field(0.0, ge=0, description="reward of a response in which `format_pattern` is found")
    format_pattern: str = Field(r"\boxed\{", description="regular expression")
    overlong_tokens: int = Field(
        0, ge=0, description="tokens before the limit on which a response is punished for its length; 0: off"
    )
    overlong_weight: float = Field(1.0, ge=0, description="punishment of a response of full length")
    min_valid_critiques: int = Field(1, ge=1)
    unjudged: Literal["drop", "outcome_only"] = "drop"
    segmenter: Literal["blank_line", "line", "regex"] = "blank_line"
    segmenter_pattern: str | None = Field(None, description="regular expression of a delimiter (segmenter regex only)")
    aggregators: int = Field(1, ge=1, description="reward aggregator shards; prompts are spread over them")
    verifiers: int = Field(1, ge=1, description="child processes that verify answers, per shard")
    verify_timeout_s: float = Field(5.0, gt=0, description="seconds until a verification is killed: unverifiable")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.segmenter == "regex" and not self.segmenter_pattern:
            raise ValueError("`segmenter_pattern` must be set when `segmenter` is regex")
        if self.process_weight >= self.outcome_weight > 0:
            warnings.warn(
                f"reward.process_weight P = {self.process_weight:g} >= reward.outcome_weight C = "
                f"{self.outcome_weight:g}: tokens of a wrong but unflagged response can be worth as much as flagged "
                "tokens of a right one; in the paper P > C made responses longer and less accurate. Use P < C.",
                stacklevel=2,
            )
        return self


class Algorithm(Block):
    """From token rewards to a gradient (CAPO.md sections 6 and 7)."""

    advantage: Annotated[str, *_or_own(Advantage)] = "capo"
    surrogate: Annotated[str, *_or_own(Surrogate)] = "clip"
    clip_low: float = Field(0.2, gt=0, le=1)
    clip_high: float = Field(0.2, gt=0)
    clip_dual: float | None = Field(
        None, gt=1, description="where the advantage is negative no token loses more than this times it; null: no bound"
    )
    aggregation: Literal["response_mean", "token_mean", "constant"] = "response_mean"
    kl_weight: float = Field(0.01, ge=0, description="beta; 0 loads no reference model")
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k3"
    kl_place: Literal["loss", "reward"] = Field(
        "loss", description="`reward`: the KL of a token lowers its advantage, before the first pass"
    )
    entropy_weight: float = Field(0.0, ge=0, description="weight of an entropy bonus; 0: none")
    refills: int = Field(
        0,
        ge=0,
        description="dynamic sampling: how often the groups of a batch in which no token has an advantage are replaced "
        "by groups of other problems",
    )
    mask_cut_off: bool = Field(
        False, description="responses that were cut off are compared with the others and not trained on"
    )
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    importance_cap: float | None = Field(
        None, gt=0, description="truncated importance correction: weight min(pi_trainer / pi_sampler, cap) per token"
    )
    max_staleness: int = Field(0, ge=0, description="policy versions that a sample may be behind; 0 is on-policy")


class Trainer(Block):
    """The trainer group: DeepSpeed ranks."""

    ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 2
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final_lr_share: float = Field(0.0, ge=0, le=1, description="share of the rate left when the cosine ends")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    optimisation_passes: int = Field(
        1, ge=1, description="passes over a rollout batch; old log-probabilities stay frozen"
    )
    responses_per_update: int | None = Field(None, gt=0, description="responses per optimizer step; null: all")
    tokens_per_micro_batch: int = Field(gt=0, description="tokens, prompt included, in one forward pass of one rank")
    gradient_checkpointing: bool = False


class Cluster(Block):
    """What is asked of Ray."""

    address: str | None = Field(None, description="null: start Ray here; auto or host:port: join a cluster")
    device: Literal["cpu", "gpu"] = "gpu"
    cpus: float | None = Field(None, gt=0, description="cores that a Ray started here offers; null: what is there")
    object_store_gib: float | None = Field(
        None, gt=0, description="object store of a Ray started here; null: Ray's choice"
    )
    dashboard: bool = True
    placement: Literal["spread", "pack"] = "pack"
    max_restarts: int = Field(
        3, ge=0, description="how often a run goes on from its last checkpoint after an actor was lost for good"
    )
    weight_transfer: Literal["shm", "nccl", "ipc"] = "nccl"


class Tracking(Block):
    """Where a run is written down."""

    wandb: Literal["off", "offline", "online", "auto"] = Field("auto", description="auto: online when logged in")
    wandb_project: str = "capo_ray"
    tensorboard: bool = True
    samples_per_step: int = Field(32, ge=0, description="responses per step written to samples/STEP-SHARD.jsonl")
    ledger: bool = Field(
        True, description="write every critique to `critiques/` and every judged response to `responses/`"
    )


class Config(Block):
    """One run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$")
    run_dir: str | None = Field(None, description="null: runs/NAME-TIME below the working directory")
    resume: bool = Field(False, description="continue the run in `run_dir` from its last checkpoint")
    dry_run: bool = Field(
        False,
        description="print the resolved configuration, the placement plan and what a critic would read, then stop",
    )
    seed: int = Field(0, ge=0)
    steps: int = Field(gt=0, description="rollout batches to train on")
    prompts_per_step: int = Field(gt=0)
    responses_per_prompt: int = Field(gt=1, description="n: the size of a group")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: only at the end")
    keep_checkpoints: int = Field(2, ge=1)
    evaluate_every: int = Field(
        0, ge=0, description="steps between evaluations; 0: only before the first and at the end"
    )
    max_dropped_share: float = Field(
        0.5, gt=0, le=1, description="dropped groups of a step above this share stop the run"
    )

    policy: Model
    data: Data
    rollout: Rollout
    critic: Critic | None = Field(None, description="null: no critiques, outcome rewards only")
    reward: Reward = Reward()
    algorithm: Algorithm = Algorithm()
    trainer: Trainer
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check(self) -> Self:
        from capo_ray.config_rules import check

        check(self)
        return self


def voter_field(number: int) -> str:
    """Where critic `number` stands in the configuration."""
    return f"critic.others[{number - 1}]" if number else "critic"


def conf_dir() -> Path:
    """Folder of the YAML files: the installed copy, else the checkout's."""
    here = Path(__file__).resolve().parent
    for path in (here / "conf", here.parent / "conf"):
        if (path / "config.yaml").is_file():
            return path
    raise FileNotFoundError(
        f"capo_ray's configuration is neither in {here / 'conf'} nor in {here.parent / 'conf'}; reinstall the package"
    )


def load(tree: Any) -> Config:
    """Validate what Hydra composed. Raises ConfigError with one line per fault: path, what is wrong, the value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    return validate(plain)


def validate(plain: Any) -> Config:
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(fault) for fault in error.errors())) from None


def _line(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "configuration"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{path}: no such key; see docs/configuration.md for the keys there are"
    if fault["type"] in ("missing", "value_error"):
        return f"{path}: {message}"
    return f"{path}: {message}, got {fault['input']!r}"


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/` with command-line overrides, such as "+experiment=tiny_cpu", and validate the result.

    A field that no YAML file names can be set as any other, `key=value`, and `GROUP=null` leaves a whole block out.
    """
    from omegaconf import OmegaConf, open_dict

    for override in overrides:
        if override.startswith("+experiment=") and override.endswith("_sft"):
            raise ConfigError(f"a supervised training is started with: python -m capo_ray.sft {override}")
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    without = [group for group in groups if f"{group}=null" in overrides]
    given = [_settable(override, groups) for override in overrides if override.removesuffix("=null") not in without]
    tree = composed("config", given)
    with open_dict(tree):
        for group in without:
            OmegaConf.update(tree, group, None)
    return load(tree)


def composed(name: str | None, overrides: Sequence[str]) -> Any:
    """What Hydra makes of `conf/NAME.yaml`, or of nothing, with overrides. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return hydra_compose(config_name=name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(error)) from error


def _settable(override: str, groups: set[str]) -> str:
    """Hydra refuses to set what no YAML file names; whether there is such a key is for `validate` to say."""
    key = override.split("=", 1)[0]
    plain = "=" in override and key[:1] not in "+~" and "@" not in key and key not in groups
    return f"++{override}" if plain and not key.startswith("hydra") else override
