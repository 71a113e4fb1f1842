"""What a supervised training needs, whether this machine has it, and what `dry_run=true` prints and looks at.

Leaves out the arithmetic of memory (planning).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from capo_ray.config.blocks import Cluster
from capo_ray.config.fault import ConfigError
from capo_ray.models.find import shown
from capo_ray.planning.look import Look
from capo_ray.planning.machine import gpu_sizes, shape_of, this_machine
from capo_ray.planning.memory import in_words, rank_memory
from capo_ray.sft.conversations import EXAMPLE, read, tokenizer_of
from capo_ray.sft.examples import located, prepare
from capo_ray.sft.settings import Sft, check_out


def dry_run(config: Sft) -> bool:
    """Print settings, plan and an example, the verdict last; whether the training could start, here or where it is
    planned for."""
    gpus = [] if config.device == "cpu" else gpu_sizes()
    look = Look(elsewhere=config.device == "gpu" and not gpus)
    with look.noting():
        check_out(config)
    with look.noting():
        if gpus:
            refuse_unfit(config, gpus)
    with look.noting():
        _look_at_examples(config, look)
    where = f"where there are {config.ranks} such GPUs" if look.elsewhere else "on this machine"
    lines, sound = look.verdict(str(this_machine(Cluster())), where)
    print("\n".join([describe(config), *lines]))
    return sound


def _look_at_examples(config: Sft, look: Look) -> None:
    """At model and data, as far as they are here, as the training reads them."""
    libraries = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if libraries:
        look.unseen.append(f"conversations as tokens: {', '.join(libraries)} not installed here")
    here = _located(config, look)
    seen = look.sees(config.data)
    if here and not libraries:
        if seen:
            prepare(here)
        else:
            tokenizer_of(here.model)
    elif seen:
        for _ in read(config.data, config.messages_field, config.model.system_prompt):
            pass


def _located(config: Sft, look: Look) -> Sft | None:
    """None where the model's files are away."""
    model = config.model
    if model.path.endswith(".json"):
        return None if look.is_away("model.tokenizer", str(model.tokenizer)) else located(config)
    files = look.files(model, "model")
    if files is None:
        return None
    look.trains(model, "model", files, longest=config.longest_in_a_row, lora=config.lora)
    path = model.path if model.path == "random" else str(files.folder)
    found = {"path": path, "tokenizer": str(files.tokenizer)}
    return config.model_copy(update={"model": model.model_copy(update=found)})


def describe(config: Sft) -> str:
    """Settings, what one rank needs, and how an example is rendered; needs no network."""
    import yaml

    needs = _needs(config)[1]
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    system = [{"role": "system", "content": config.model.system_prompt}] if config.model.system_prompt else []
    example = shown([*system, *EXAMPLE], config.model, add_generation_prompt=False)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} passes over {config.data.path}"
    return (
        f"{resolved}\n"
        f"plan: {config.ranks} ranks on one machine, {length}, {config.sequences_per_update} conversations an update\n"
        f"  each rank (estimates): {needs or 'not known here: the model has no shape'}\n"
        f"an example as it is learnt from:\n{example}"
    )


def _needs(config: Sft) -> tuple[float, str]:
    """GiB of one rank on GPU, and in words; 0 and none where the model's shape is not known here."""
    shape = shape_of(config.model)
    if shape is None:
        return 0.0, ""
    rank = rank_memory(config.trainer(), shape, config.model.dtype, reference=False, on_cpu=False)
    total, parts = sum(rank.most().values()), in_words(rank.most())
    return total, f"{total:.1f} GiB = {parts}" + (f"; in its host's memory {in_words(rank.host)}" if rank.host else "")


def refuse_unfit(config: Sft, gpus: Sequence[float]) -> None:
    """Raises ConfigError where a rank would have no GPU, or one of too little memory; `gpus` in GiB each."""
    if config.ranks > len(gpus):
        raise ConfigError(
            f"ranks: {config.ranks} ranks need a GPU each, and this machine has {len(gpus)}; lower ranks, or pass "
            "device=cpu, where small models learn"
        )
    needed, parts = _needs(config)
    room = min(gpus[: config.ranks])
    if needed <= room:
        return
    ways = [f"a tokens_per_micro_batch below {config.tokens_per_micro_batch}"]
    ways += ["gradient_checkpointing=true"] if not config.gradient_checkpointing else []
    ways += [f"a zero_stage above {config.zero_stage}"] if config.zero_stage < 3 else []
    raise ConfigError(
        f"a rank needs about {parts}, and a GPU here has {room:.0f}; pass {', '.join(ways)} or more ranks"
    )
