"""`python -m capo_ray.tasks.arithmetic.models`: make the shipped tiny models again (`make tiny-models`).

Trains the tokenizer, writes the lessons, trains the policy and the critic with `capo_ray.sft`, measures both and writes
them with their cards to the assets. Each model is taught in stages: facts to learn by heart, then lessons full of
mistakes, which bring out what has to be told apart, then lessons as they should be imitated. Leaves out what the
lessons are (see `lessons`) and how good the models are (see `measure`).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.program import run_program
from capo_ray.tasks.arithmetic import measure, tokenizer
from capo_ray.tasks.arithmetic.flaws import Rates
from capo_ray.tasks.arithmetic.lessons import (
    Conversation,
    critic_drills,
    critic_lessons,
    facts,
    policy_drills,
    policy_lessons,
)

SEED = 1
WINDOW = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One run of `capo_ray.sft`."""

    lessons: Iterator[Conversation]
    steps: int
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A model to be made."""

    name: str
    role: str
    shape: dict[str, Any]
    stages: tuple[Stage, ...]
    sharpness: float = 1.0
    """Factor on the logits of what comes out: a model this small stays less sure than its lessons make it."""


_BATCH = 32
_THREADS = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
"""Half of the cores for each of the two models that are taught at once: more threads than cores starve one another."""
_MISTAKES = Rates(misquoted=0.195, skipped=0.13)
"""With these, each of the four cases, answer right or wrong by process right or wrong, is more than a tenth."""
_SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": WINDOW,
    "dtype": "float32",
}


def recipes(scale: float) -> tuple[Recipe, Recipe]:
    """Policy and critic. `scale` shortens every stage, for a quick try."""

    def stage(lessons: Any, steps: int, learning_rate: float, seed: int) -> Stage:
        steps = max(1, round(steps * scale))
        return Stage(lessons=lessons(seed, steps * _BATCH), steps=steps, learning_rate=learning_rate)

    return (
        Recipe(
            name="tiny_policy",
            role="policy",
            shape=_SHAPE | {"num_hidden_layers": 3, "tie_word_embeddings": True},
            stages=(
                stage(facts, 1200, 2e-3, SEED),
                stage(policy_drills, 1500, 2e-3, SEED + 1),
                stage(partial(policy_lessons, rates=_MISTAKES), 5600, 2e-3, SEED + 2),
            ),
            sharpness=1.28,
        ),
        Recipe(
            name="tiny_critic",
            role="critic",
            shape=_SHAPE | {"num_hidden_layers": 4, "tie_word_embeddings": False},
            stages=(
                stage(facts, 1200, 2e-3, SEED + 3),
                stage(critic_drills, 2000, 1.5e-3, SEED + 4),
                stage(critic_lessons, 2800, 1.5e-3, SEED + 5),
                stage(critic_lessons, 1000, 1e-3, SEED + 6),
            ),
            sharpness=1.15,
        ),
    )


def make_tokenizer(folder: Path) -> int:
    """Train it on lessons of both models; returns the size of its vocabulary."""
    lessons = itertools.chain(
        facts(SEED, 2000), policy_lessons(SEED, 5000), critic_drills(SEED, 5000), critic_lessons(SEED, 5000)
    )
    texts = (part for lesson in lessons for turn in lesson for part in (f"{turn['role']}\n", turn["content"]))
    return len(tokenizer.train(texts, folder, window=WINDOW))


def make(recipe: Recipe, work: Path) -> Path:
    """Train one model stage by stage; returns its folder."""
    spec = json.loads((work / "tokenizer" / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    config = recipe.shape | {
        "vocab_size": len(spec["model"]["vocab"]),
        "bos_token_id": None,
        "eos_token_id": special[tokenizer.END],
        "pad_token_id": special[tokenizer.PADDING],
    }
    source = work / f"{recipe.name}.config.json"
    source.write_text(json.dumps(config, indent=1))
    for number, stage in enumerate(recipe.stages):
        source = teach(stage, source, work, f"{recipe.name}.{number}")
    sharpen(source / "model.safetensors", recipe.sharpness)
    return source


def teach(stage: Stage, model: Path, work: Path, name: str) -> Path:
    """Run one stage on `model`; returns the folder of what comes out."""
    data, out = work / f"{name}.jsonl", work / name
    shutil.rmtree(out, ignore_errors=True)  # of a making before
    with data.open("w") as file:
        file.writelines(json.dumps({"messages": lesson}) + "\n" for lesson in stage.lessons)
    settings = {
        "model": model,
        "model.tokenizer": work / "tokenizer",
        "model.dtype": "float32",
        "data": data,
        "out": out,
        "steps": stage.steps,
        "sequences_per_update": _BATCH,
        "tokens_per_micro_batch": 2048,
        "learning_rate": stage.learning_rate,
        "warmup_steps": min(100, stage.steps // 10),
        "betas": "[0.9,0.98]",
        "weight_decay": 0.01,
        "final_lr_share": 0.02,
        "report_every": 50,
        "device": "cpu",
        "seed": SEED,
    }
    with (work / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "capo_ray.sft", *(f"{key}={value}" for key, value in settings.items())]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | _THREADS)
    return out


def sharpen(weights: Path, factor: float) -> None:
    """Multiply the model's logits by `factor`, in its last norm, where tied and untied heads read from."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["model.norm.weight"] *= factor
    save_file(tensors, weights, metadata={"format": "pt"})


def ship(folder: Path, tokenizer_folder: Path, target: Path, card: str) -> None:
    """Copy what a model's users need. The tokenizer is the one it was made with, its chat template in its config."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(folder / name, target / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, target / name)
    (target / "README.md").write_text(card)


_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

The {role} of the tiny arithmetic world, with which `python -m capo_ray.launch +experiment=tiny_cpu` runs and learns on
two CPU cores. {text}

It is of no use outside this world: sums and differences of numbers up to 99 with operands up to 9, two to four of them
in a problem.

## Recipe

Llama architecture, {layers} layers of {hidden}, {parameters:,} parameters in float32, {tied} embeddings, a byte-level
BPE of {vocabulary} entries. Trained from random weights by `make tiny-models` (`capo_ray/tasks/arithmetic/models.py`,
seed {seed}) with `python -m capo_ray.sft` on generated conversations, none of which is about a held-out problem. At the
end its logits were multiplied by {sharpness:g}, in the last norm.

| stage | conversations | steps of {batch} | learning rate (cosine) |
|---|---|---|---|
{stages}

## Measured

On held-out problems, by `python -m capo_ray.tasks.arithmetic.measure`, whose checker knows the truth of every step:

```json
{measured}
```
"""
_TEXTS = {
    "policy": (
        "It writes solutions step by step and was taught mistakes on purpose: wrong results, numbers misread,\n"
        "operations left out, some of which reach the right answer all the same. Its most probable response is nearly\n"
        "always right."
    ),
    "critic": (
        "It reads a question, a reference and a solution in numbered tags (template `brief` of\n"
        "`capo_ray.credit.critique`) and writes one line per step (what the step states / the sum again,\n"
        "right or wrong), then Yes or No and the list of wrong steps. Its lessons are noisy on purpose, so that it is\n"
        "wrong now and then and differently in each sample."
    ),
}


def card(recipe: Recipe, folder: Path, measured: dict[str, Any]) -> str:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    parameters = sum(_product(shape) for shape in shapes)
    rows = (
        f"| {number + 1} | {stage.steps * _BATCH:,} | {stage.steps:,} | {stage.learning_rate:g} |"
        for number, stage in enumerate(recipe.stages)
    )
    return _CARD.format(
        name=recipe.name,
        role=recipe.role,
        text=_TEXTS[recipe.role],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        parameters=parameters,
        tied="tied" if config["tie_word_embeddings"] else "untied",
        vocabulary=config["vocab_size"],
        seed=SEED,
        sharpness=recipe.sharpness,
        batch=_BATCH,
        stages="\n".join(rows),
        measured=json.dumps({key: value for key, value in measured.items() if _concerns(key, recipe.role)}, indent=2),
    )


def _concerns(figure: str, role: str) -> bool:
    other = "critic" if role == "policy" else "policy"
    return other not in figure


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


USAGE = """usage: python -m capo_ray.tasks.arithmetic.models [key=value ...]

Makes the shipped tiny models again: over an hour of two cores.

  python -m capo_ray.tasks.arithmetic.models scale=0.01 out=/tmp/models
"""


class Settings(Block):
    """Of this program."""

    out: AnyPath = setting("folder that gets a folder per model", measure.ASSETS)
    work: AnyPath = setting("lessons, logs and stages", Path("runs/tiny_models"))
    scale: float = setting("share of the training steps; below 1 for a quick try", 1.0, gt=0)
    count: int = setting("held-out problems to measure on", 1000, ge=1)


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    print(f"tokenizer: {make_tokenizer(given.work / 'tokenizer')} entries", flush=True)
    made = recipes(given.scale)
    print(f"training {' and '.join(recipe.name for recipe in made)}; progress in {given.work}/*.log", flush=True)
    with ThreadPoolExecutor(len(made)) as both:
        folders = list(both.map(lambda recipe: make(recipe, given.work), made))
    measured = measure.measure(folders[0], folders[1], count=given.count, votes=4, top_p=1.0)
    print(json.dumps(measured, indent=2))
    for recipe, folder in zip(made, folders, strict=True):
        ship(folder, given.work / "tokenizer", given.out / recipe.name, card(recipe, folder, measured))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings), bare=True)


if __name__ == "__main__":
    sys.exit(main())
