"""`python -m capo_ray.config_docs > docs/configuration.md`: every field of the configuration, from its models.

A field's meaning is its own description in `config`, or what stands here where its name and type say most of it. Leaves
out the rules (config checks them, and its messages state them) and the YAML files of conf/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capo_ray.config.run import Config

MEANINGS: dict[str, str] = {
    "Config.name": "name of the run, and of its directory",
    "Config.seed": "every random choice of the run is a function of it",
    "Config.prompts_per_step": "problems of one rollout batch",
    "Config.keep_checkpoints": "newest checkpoints that are kept",
    "Config.policy": "the model that is trained",
    **dict.fromkeys(
        (f"Config.{name}" for name in ("data", "rollout", "reward", "algorithm", "trainer", "cluster", "tracking")),
        "see below",
    ),
    "Model.dtype": "number format of the weights, in engines and trainer alike",
    "Shape.layers": "decoder layers",
    "Shape.hidden_size": "width of the residual stream",
    "Shape.vocabulary": "entries of the embedding, padding included",
    "Data.max_prompt_tokens": "tokens; longer prompts, chat template included, are left out and counted",
    "Rollout.workers": "vLLM engines that sample",
    "Rollout.max_response_tokens": "tokens after which a response is cut off",
    "Rollout.temperature": "of sampling; the trainer scales its logits by it too",
    "Rollout.top_p": "nucleus of sampling; 1: off",
    "Rollout.gpu_memory_share": "share of a GPU that an engine may take",
    "Critic.reference": "what the critic is shown of the right solution; where the data lacks it, the next best",
    "Critic.max_critique_tokens": "tokens after which a critique is cut off",
    "Critic.on_outage": "`wait`: training waits for a critic to come back; `outcome_only`: it goes on, and a group "
    "with responses that nobody could judge gets outcome rewards alone",
    "Critic.temperature": "of sampling; 0: greedy",
    "Critic.top_p": "nucleus of sampling; 1: off",
    "Reward.vote": "when a step counts as wrong; the table is in algorithm.md, section 4",
    "Reward.min_valid_critiques": "a response with fewer is unjudged",
    "Reward.unjudged": "`drop`: an unjudged response leaves its group; `outcome_only`: its whole group gets outcome "
    "rewards alone",
    "Reward.segmenter": "what stands between two steps: a blank line, a line break, or `segmenter_pattern`",
    "Reward.error_set": "which of the steps found wrong pay: all, all from the first on, or the first alone",
    "Reward.returns": "what a step's penalty becomes: itself, the sum of it and those after it, or the largest of them",
    "Algorithm.advantage": "how rewards become advantages; only those called `capo...` see step penalties; the table "
    "is in algorithm.md, section 6",
    "Algorithm.surrogate": "what is made of ratio and advantage; the table is in algorithm.md, section 7",
    "Algorithm.clip_low": "the ratio is clipped at 1 - this",
    "Algorithm.clip_high": "the ratio is clipped at 1 + this",
    "Algorithm.aggregation": "mean over a response's tokens, then over responses; over all tokens; or over responses x "
    "`rollout.max_response_tokens`",
    "Algorithm.kl_estimator": "of the KL to the reference; r = log reference - log policy: -r, r^2/2, e^r - r - 1, |r|",
    "Algorithm.old_logprobs": "what the ratio is taken against",
    "Trainer.ranks": "DeepSpeed processes; on GPU each has one GPU",
    "Trainer.zero_stage": "what DeepSpeed shards over the ranks: nothing, optimizer, gradients too, weights too",
    "Trainer.learning_rate": "peak rate of AdamW",
    "Trainer.schedule": "of the rate, over all optimizer steps of the run",
    "Trainer.weight_decay": "of AdamW, on matrices alone",
    "Trainer.betas": "of AdamW",
    "Trainer.max_grad_norm": "the gradient is clipped to this norm",
    "Trainer.gradient_checkpointing": "recompute activations instead of keeping them",
    "Cluster.device": "where engines and ranks run",
    "Cluster.dashboard": "start Ray's dashboard",
    "Cluster.placement": "fill machines one after the other, or spread over them",
    "Cluster.weight_transfer": "`shm`: a file in shared memory, on CPU; `nccl`: between GPUs; `ipc`: trainer rank n "
    "and rollout worker n share a GPU",
    "Tracking.wandb_project": "project of the wandb run",
    "Tracking.tensorboard": "write event files to `tensorboard/` of the run directory",
    "Tracking.samples_per_step": "responses per step written to `samples/` of the run directory",
}
"""Model.field -> meaning, where `config` has none or says less."""

HEAD = """\
# Configuration

Made by `python -m capo_ray.config_docs > docs/configuration.md` from the models of `capo_ray/config/`; not edited by
hand.

A run is composed by Hydra from the files of `conf/` and the command line, and checked once, before anything starts. An
experiment is a file in `conf/experiment/`; whatever it sets can be overridden:

```bash
python -m capo_ray.launch +experiment=tiny_cpu steps=5 reward=majority trainer.zero_stage=2
python -m capo_ray.launch +experiment=tiny_cpu critic=null algorithm=grpo   # without critiques
```

`GROUP=NAME` takes another file of a group (`reward=majority` is `conf/reward/majority.yaml`), `FIELD=VALUE` sets one
value, `GROUP=null` leaves a block out. A model is the group `model` under the place it is for:
`model@policy=tiny_policy`. The defaults below are those of a field that no file sets; `dry_run=true` prints what a run
would really have. An unknown key, a wrong type or a broken rule ends the launch with the field, the value and what to
do.

In the tables *required* means that there is no default, and a range stands beside the type.
"""

BLOCKS: dict[str, str] = {
    "Config": "The run",
    "Model": "`policy`, and `critic.model`",
    "Shape": "`policy.shape`, and `critic.model.shape`",
    **{name.capitalize(): f"`{name}`" for name in ("data", "rollout", "critic")},
    "HeldOut": "`data.evaluation`",
    "Voter": "`critic.others`",
    "Canaries": "`critic.canaries`",
    "Reward": "`reward`",
    **{name.capitalize(): f"`{name}`" for name in ("algorithm", "trainer", "cluster", "tracking")},
}
"""Model -> title of its table."""
_BAR = "\\|"
RANGES = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}


def page() -> str:
    """The whole of docs/configuration.md."""
    schema = Config.model_json_schema()
    blocks = {"Config": schema, **schema["$defs"]}
    parts = [HEAD]
    for name, title in BLOCKS.items():
        about = blocks[name]["description"].replace("docs/algorithm.md", "[algorithm.md](algorithm.md)")
        parts.append(f"## {title}\n\n{about}\n\n" + "\n".join(_table(blocks[name])) + "\n")
    return "\n".join(parts)


def _table(block: dict[str, Any]) -> Iterator[str]:
    required = block.get("required", [])
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, spec in block["properties"].items():
        default = "*required*" if name in required else _default(spec)
        cells = (f"`{name}`", _type(spec), default, meaning(block["title"], name, spec))
        yield f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |"


def meaning(model: str, field: str, spec: dict[str, Any]) -> str:
    """What a field means. Raises KeyError for one that nobody has said anything of."""
    inherited = "$ref" in spec  # then the description is that of the block
    said = MEANINGS.get(f"{model}.{field}") or (None if inherited else spec.get("description"))
    if said is None:
        raise KeyError(f"{model}.{field} has no description in capo_ray/config")
    return str(said)


def _default(spec: dict[str, Any]) -> str:
    value = spec.get("default")
    if isinstance(value, dict):
        return "its defaults"
    if isinstance(value, bool) or value is None:
        return {True: "`true`", False: "`false`", None: "`null`"}[value]
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _type(spec: dict[str, Any]) -> str:
    if "$ref" in spec:
        return "block"
    if "anyOf" in spec:
        return " or ".join(_type(part) for part in spec["anyOf"])
    if "enum" in spec or "const" in spec:
        return " | ".join(f"`{choice}`" for choice in spec.get("enum", [spec.get("const")]))
    if "items" in spec:
        return f"list of {_type(spec['items'])}s"
    if "prefixItems" in spec:
        return f"[{', '.join(_type(part) for part in spec['prefixItems'])}]"
    ranges = [text.format(f"{spec[key]:g}") for key, text in RANGES.items() if key in spec]
    pattern = [f"`{spec['pattern']}`"] if "pattern" in spec else []
    return " ".join([spec["type"], ", ".join([*ranges, *pattern])]).strip()


if __name__ == "__main__":
    print(page(), end="")
