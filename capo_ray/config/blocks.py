"""What every run has, as frozen models: its data, engines, trainer, cluster and tracking.

Each field says its meaning, unit and source beside it. Leaves out models (see `model`), critics (see `critic`), the
choices of the method (see `method`), and rules between blocks (see `rules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from capo_ray.config.block import MOST_PROCESSES, Block, Regex, or_own, setting
from capo_ray.config.fault import shown
from capo_ray.config.library import RolloutOptions
from capo_ray.config.lora import Lora
from capo_ray.config.optimizer import (
    Betas,
    DeepSpeed,
    FinalLrShare,
    GradientCheckpointing,
    HeadFloat32,
    HeadTokens,
    MaxGradNorm,
    Offload,
    Packing,
    Schedule,
    WarmupSteps,
    WeightDecay,
    ZeroStage,
    check_offload,
)


class Source(Block):
    """Where problems stand, and in which columns."""

    place: ClassVar[str] = "data"
    """Of these fields in the configuration."""

    path: str | None = setting(
        "file (.jsonl, .json, .csv, .tsv, these with .gz, .parquet), folder with a data set, or Hugging Face id",
        None,
        source="datasets `load_dataset`",
    )
    subset: str | None = setting(
        "configuration of a Hugging Face data set; null: its only one", None, source="datasets `name`"
    )
    split: str = setting("split of a Hugging Face data set", "train", source="datasets `split`")
    question_field: str | None = setting(
        "column of the question, or of chat messages; `a.b` is column b inside a; null: found by its usual name, see "
        "[data.md](data.md#your-own)",
        "question",
    )
    answer_field: str | None = setting(
        "gold final answer, or a text that holds it; null: found by its usual name", "answer"
    )
    answer_boxed: bool = setting("the gold answer is in the last \\boxed{} of `answer_field`", False)
    answer_pattern: Regex | None = setting("regular expression whose first group is the gold answer", None)
    solution_field: str | None = setting(
        "reference solution shown to the critic; null: none, or found by its usual name where question or answer are",
        None,
        source="CAPO",
    )
    id_field: str | None = setting("column of names that differ; null: FILE:NUMBER", None)

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        pattern = self.answer_pattern
        if pattern is None:
            return self
        if self.answer_boxed:
            raise ValueError("`answer_boxed` and `answer_pattern` both say where the gold answer is; leave one out")
        if not re.compile(pattern).groups:
            raise ValueError(f"`answer_pattern` {pattern!r} has no group; put the answer in one: (...)")
        return self


class HeldOut(Source):
    """Where the held-out problems stand. What is not given is as in `data`."""

    place: ClassVar[str] = "data.evaluation"


class Data(Source):
    """Where prompts come from."""

    kind: Annotated[str, *or_own(Literal["math", "arithmetic"])] = setting(
        "`math`: problems of `path`, verified by math-verify; `arithmetic`: the tiny world, made up; "
        "`module:name`: problems of `path`, verified by a task of your own, see "
        "[extending.md](extending.md#a-task)",
        "math",
    )
    limit: int | None = setting("keep the first so many problems", None, unit="problems", gt=0, le=10_000_000)
    operations: tuple[int, int] = setting(
        "arithmetic only: fewest and most operations of a problem", (2, 4), unit="operations"
    )
    evaluation_prompts: int = setting(
        "held-out problems evaluated before and after the run", 0, unit="problems", ge=0, le=1_000_000
    )
    evaluation_responses: int = setting(
        "responses sampled to each held-out problem; with k of them the share of right ones is avg@k, and pass@k is "
        "measured too",
        1,
        unit="responses",
        ge=1,
    )
    evaluation: HeldOut | None = setting(
        "the data set of the held-out problems; null: they are drawn from those of training", None
    )
    max_prompt_tokens: int = setting(
        "tokens; longer prompts, chat template included, are left out and counted", 256, unit="tokens", gt=0
    )

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
        if self.kind == "arithmetic" and self.path:
            raise ValueError(
                "`path` would not be read: `kind` arithmetic makes its own problems; begin with data=plain "
                "(or another of conf/data: gsm8k, math, verl) for problems of a file, or leave it out"
            )
        if self.evaluation is not None and not self.evaluation_prompts:
            raise ValueError(
                "`evaluation` names held-out problems and `evaluation_prompts` is 0, so that none of them would be "
                "evaluated; set data.evaluation_prompts"
            )
        if not 1 <= self.operations[0] <= self.operations[1] <= 50:
            raise ValueError(
                f"`operations` must be [fewest, most] with 1 <= fewest <= most <= 50, got {list(self.operations)}"
            )
        return self


class Rollout(Block):
    """The rollout pool: vLLM engines that sample from the policy."""

    workers: int = setting("vLLM engines that sample", 1, unit="engines", ge=1, le=MOST_PROCESSES)
    tensor_parallel: int = setting(
        "GPUs per worker", 1, unit="GPUs", source="vLLM `tensor_parallel_size`", ge=1, le=MOST_PROCESSES
    )
    max_response_tokens: int = setting(
        "tokens after which a response is cut off", unit="tokens", source="vLLM `max_tokens`", gt=0
    )
    temperature: float = setting(
        "of sampling; the trainer scales its logits by it too",
        1.0,
        unit="none",
        source="vLLM `temperature`; CAPO: 0.7",
        ge=0,
    )
    top_p: float = setting(
        "nucleus of sampling; 1: off", 1.0, unit="probability", source="vLLM `top_p`; CAPO: 0.9", gt=0, le=1
    )
    top_k: int = setting("most likely tokens that are sampled from; -1: off", -1, unit="tokens", source="vLLM `top_k`")
    max_sequences: int = setting(
        "sequences in flight per worker", 256, unit="sequences", source="vLLM `max_num_seqs`", gt=0
    )
    gpu_memory_share: float = setting(
        "share of a GPU that an engine may take", 0.85, unit="share", source="vLLM `gpu_memory_utilization`", gt=0, le=1
    )
    kv_cache_gib: int = setting(
        "KV cache of a worker on CPU, GiB", 1, unit="GiB", source="vLLM `VLLM_CPU_KVCACHE_SPACE`", gt=0
    )
    eager: bool = setting("no CUDA graphs and no compilation", False, source="vLLM `enforce_eager`")
    engine: RolloutOptions = setting(
        "further options of vLLM's engines, by vLLM's names, see [extending.md](extending.md#options-of-the-libraries)",
        {},
        source="vLLM `EngineArgs`",
    )


class Trainer(Block):
    """The trainer group: DeepSpeed ranks."""

    ranks: int = setting(
        "DeepSpeed processes; on GPU each has one GPU", 1, unit="processes", source="DeepSpeed", ge=1, le=MOST_PROCESSES
    )
    zero_stage: ZeroStage = 2
    offload: Offload = "none"
    learning_rate: float = setting("peak rate of AdamW", unit="none", source="torch `AdamW`; CAPO: 2e-8 to 1e-7", gt=0)
    schedule: Schedule = "cosine"
    warmup_steps: WarmupSteps = 0
    final_lr_share: FinalLrShare = 0.0
    weight_decay: WeightDecay = 0.0
    betas: Betas = (0.9, 0.999)
    max_grad_norm: MaxGradNorm = 1.0
    stop_after_nonfinite: int = setting(
        "an optimizer step whose gradient is not finite is skipped; after so many steps of the run in a row with one, "
        "the run ends; 1: the first one ends it",
        3,
        unit="steps",
        ge=1,
    )
    optimisation_passes: int = setting(
        "passes over a rollout batch; old log-probabilities stay frozen", 1, unit="passes", source="CAPO: 4", ge=1
    )
    responses_per_update: int | None = setting("responses per optimizer step; null: all", None, unit="responses", gt=0)
    tokens_per_micro_batch: int = setting(
        "tokens, prompt included, in one forward pass of one rank", unit="tokens", gt=0
    )
    gradient_checkpointing: GradientCheckpointing = True
    packing: Packing = "shared"
    head_tokens: HeadTokens = None
    head_float32: HeadFloat32 = False
    lora: Lora | None = setting("see below; null: all weights learn", None)
    deepspeed: DeepSpeed = Field({})

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_offload(self.offload, self.zero_stage)
        return self


def _joins(address: str) -> str:
    port = re.fullmatch(r"(?:ray://)?[^\s/]+:(\d{1,5})", address)
    if address not in ("auto", "local") and not (port and 0 < int(port[1]) < 65536):
        raise ValueError(f"must be auto, or HOST:PORT with a port below 65536, got {shown(address)}")
    return address


class Cluster(Block):
    """What is asked of Ray."""

    address: Annotated[str, AfterValidator(_joins)] | None = setting(
        "null: start Ray here; auto or host:port: join a cluster", None, source="Ray `address`"
    )
    device: Literal["cpu", "gpu"] = setting("where engines and ranks run", "gpu")
    cpus: float | None = setting(
        "cores that a Ray started here offers; null: what is there", None, unit="cores", source="Ray `num_cpus`", gt=0
    )
    object_store_gib: float | None = setting(
        "object store of a Ray started here; null: Ray's choice",
        None,
        unit="GiB",
        source="Ray `object_store_memory`",
        gt=0,
    )
    dashboard: bool = setting("start Ray's dashboard", True, source="Ray `include_dashboard`")
    placement: Literal["spread", "pack"] = setting(
        "fill machines one after the other, or spread over them", "pack", source="Ray placement groups"
    )
    max_restarts: int = setting(
        "how often in a row, with no new checkpoint in between, a run goes on from its last one after a loss",
        3,
        unit="restarts",
        ge=0,
    )
    node_wait_s: float = setting(
        "how long a run on a joined cluster waits for a lost machine or another in its place", 600.0, unit="s", ge=0
    )
    silence_s: float = setting(
        "an actor, or its engine, that answers nothing for so long is ended as if it had died, and named after half of "
        "it; a slow one answers in time",
        75.0,
        unit="s",
        ge=2,
    )
    sharing: Literal["apart", "pairs", "turns"] = setting(
        "who is on a GPU: `apart`: every rollout worker, critic and trainer rank has its own; `pairs`: rollout workers "
        "have those of trainer ranks; `turns`: all roles share all of them, one after the other",
        "apart",
    )
    lora_sync: Literal["merged", "adapter"] = setting(
        "with `trainer.lora`: `adapter`: engines keep the weights that they began with and get the adapter alone; "
        "`merged`: they get whole weights with the adapter in them, and bfloat16 rounds most of a small one off",
        "adapter",
    )

    @property
    def weight_transfer(self) -> Literal["shm", "nccl", "ipc"]:
        """How weights reach the engines: a file in shared memory on CPU, NCCL between GPUs, or handles of CUDA IPC on
        GPUs that trainer ranks and rollout workers share."""
        if self.device == "cpu":
            return "shm"
        return "nccl" if self.sharing == "apart" else "ipc"

    @model_validator(mode="before")
    @classmethod
    def _no_transfer(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "weight_transfer" in given:
            ipc = given["weight_transfer"] == "ipc" and given.get("sharing", "apart") == "apart"
            instead = "set cluster.sharing=pairs" if ipc else "leave it out"
            raise ValueError(f"`weight_transfer` follows from cluster.sharing and cluster.device; {instead}")
        return given


class Tracking(Block):
    """Where a run is written down."""

    wandb: Literal["off", "offline", "online", "auto"] = setting(
        "auto: online when logged in", "auto", source="wandb `mode`"
    )
    wandb_project: str = setting("project of the wandb run", "capo_ray", source="wandb `project`")
    wandb_samples: int = setting(
        "responses per step in wandb's table `samples`, of those of `samples_per_step`", 8, unit="responses", ge=0
    )
    tensorboard: bool = setting(
        "write event files to `tensorboard/` of the run directory", True, source="tensorboard `EventFileWriter`"
    )
    samples_per_step: int = setting(
        "responses per step written to `samples/` of the run directory", 32, unit="responses", ge=0
    )
    trace: bool = setting(
        "write what every actor did when to `trace.json` of the run directory, for chrome://tracing and Perfetto",
        False,
        source="Chrome's Trace Event Format, JSON array",
    )
    ledger: bool = setting("write every critique to `critiques/` and every judged response to `responses/`", True)
