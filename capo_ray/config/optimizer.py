"""Settings of AdamW, of passes over the model and of DeepSpeed that a run's trainer and supervised training share:
types with their meaning.

Leaves out what they are where nothing is said, which the blocks say.
"""

from __future__ import annotations

from typing import Annotated, Literal

from capo_ray.config.block import setting
from capo_ray.config.library import DeepSpeedOptions

Schedule = Annotated[
    Literal["cosine", "constant"], setting("of the rate, over all optimizer steps of the run", source="CAPO, for RL")
]
WarmupSteps = Annotated[int, setting("optimizer steps of linear warm-up", unit="optimizer steps", ge=0)]
FinalLrShare = Annotated[float, setting("share of the rate left when the cosine ends", unit="share", ge=0, le=1)]
WeightDecay = Annotated[float, setting("of AdamW, on matrices alone", unit="none", source="torch `AdamW`", ge=0)]
Betas = Annotated[tuple[float, float], setting("of AdamW", unit="none", source="torch `AdamW`")]
MaxGradNorm = Annotated[
    float, setting("the gradient is clipped to this norm", unit="none", source="DeepSpeed `gradient_clipping`", gt=0)
]
ZeroStage = Annotated[
    Literal[0, 1, 2, 3],
    setting(
        "what DeepSpeed shards over the ranks: nothing, optimizer, gradients too, weights too",
        unit="none",
        source="DeepSpeed `zero_optimization.stage`",
    ),
]
Offload = Annotated[
    Literal["none", "optimizer", "all"],
    setting(
        "what of a rank lies in the memory of its host: nothing; the optimizer, from ZeRO stage 1 on; weights and "
        "optimizer, at stage 3. Smaller on a GPU, and slower",
        source="DeepSpeed `zero_optimization.offload_optimizer`, `offload_param`",
    ),
]


def check_offload(offload: str, zero_stage: int) -> None:
    """Raises ValueError where DeepSpeed cannot do it."""
    least = {"none": 0, "optimizer": 1, "all": 3}[offload]
    if zero_stage < least:
        raise ValueError(f"`offload` {offload} wants `zero_stage` {least} at least, and it is {zero_stage}; raise it")


GradientCheckpointing = Annotated[
    bool,
    setting(
        "recompute activations instead of keeping them; the plan says where there is room without",
        source="transformers `gradient_checkpointing_enable`",
    ),
]
Packing = Annotated[
    Literal["padded", "packed", "shared"],
    setting(
        "how sequences stand in a forward pass: padded: a row each, filled up to the longest; packed: one after the "
        "other in one row; shared: so too, and a prompt of several responses once",
    ),
]
HeadTokens = Annotated[
    int | None,
    setting(
        "tokens whose logits a rank holds at a time, forward and backward; null: as many as a quarter of a GiB holds "
        "in float32. Fewer take less memory; beyond one piece the head's product is taken twice",
        unit="tokens",
        gt=0,
    ),
]
HeadFloat32 = Annotated[
    bool,
    setting(
        "take the head's product in float32 where the model is bfloat16: log-probabilities nearer to the true ones, "
        "for more time and a float32 copy of the head",
    ),
]
DeepSpeed = Annotated[
    DeepSpeedOptions,
    setting(
        "further options of DeepSpeed, by its names, see [extending.md](extending.md#options-of-the-libraries)",
        source="DeepSpeed `config`",
    ),
]
