"""What every run has, as frozen models: its model, data, engines, trainer, cluster and tracking.

Each field says its meaning and unit beside it. Leaves out the critics (see `config.critic`), the choices of the method
(see `config.method`), and rules between blocks (see `config.rules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from capo_ray import extension


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def or_own(known: Any) -> tuple[AfterValidator, WithJsonSchema]:
    """For a field that takes one of the `known` names, or `module:name` of an object of the user's."""
    names = get_args(known)

    def check(name: str) -> str:
        if name not in names and not extension.is_own(name):
            raise ValueError(f"must be one of {', '.join(names)}, or module:name of your own, got {name!r}")
        return name

    return AfterValidator(check), WithJsonSchema({"enum": [*names, "module:name"], "type": "string"})


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


class Source(Block):
    """Where problems stand, and in which columns."""

    place: ClassVar[str] = "data"
    """Of these fields in the configuration."""

    path: str | None = Field(
        None,
        description=".jsonl, .jsonl.gz or .parquet file, folder with a data set, or Hugging Face id",
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

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        pattern = self.answer_pattern
        if pattern is None:
            return self
        if self.answer_boxed:
            raise ValueError("`answer_boxed` and `answer_pattern` both say where the gold answer is; leave one out")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"`answer_pattern` {pattern!r} is not a regular expression: {error}") from None
        if not groups:
            raise ValueError(f"`answer_pattern` {pattern!r} has no group; put the answer in one: (...)")
        return self


class HeldOut(Source):
    """Where the held-out problems stand. What is not given is as in `data`."""

    place: ClassVar[str] = "data.evaluation"


class Data(Source):
    """Where prompts come from."""

    kind: Annotated[str, *or_own(Literal["math", "arithmetic"])] = Field(
        "math",
        description="`math`: problems of `path`, verified by math-verify; `arithmetic`: the tiny world, made up; "
        "`module:name`: problems of `path`, verified by a task of your own, see [extending.md](extending.md#a-task)",
    )
    limit: int | None = Field(None, gt=0, description="keep the first so many problems")
    operations: tuple[int, int] = Field((2, 4), description="arithmetic only: fewest and most operations of a problem")
    evaluation_prompts: int = Field(0, ge=0, description="held-out problems evaluated before and after the run")
    evaluation: HeldOut | None = Field(
        None, description="the data set of the held-out problems; null: they are drawn from those of training"
    )
    max_prompt_tokens: int = Field(256, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(other := given.get("evaluation"), Mapping):
            shared = {name: given[name] for name in Source.model_fields if name in given}
            return {**given, "evaluation": {**shared, **other}}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "arithmetic" and not self.path:
            raise ValueError(
                f"`path` must name a file or a data set when `kind` is {self.kind}; pass data.path=FILE_OR_ID"
            )
        if self.evaluation is not None and not self.evaluation_prompts:
            raise ValueError(
                "`evaluation` names held-out problems and `evaluation_prompts` is 0, so that none of them would be "
                "evaluated; set data.evaluation_prompts"
            )
        if self.operations[0] < 1 or self.operations[0] > self.operations[1]:
            raise ValueError(
                f"`operations` must be [fewest, most] with 1 <= fewest <= most, got {list(self.operations)}"
            )
        return self


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
    wandb_samples: int = Field(
        8, ge=0, description="responses per step in wandb's table `samples`, of those of `samples_per_step`"
    )
    tensorboard: bool = True
    samples_per_step: int = Field(32, ge=0, description="responses per step written to samples/STEP-SHARD.jsonl")
    ledger: bool = Field(
        True, description="write every critique to `critiques/` and every judged response to `responses/`"
    )
