"""`dry_run=true`: the configuration, its plan, and a look at everything that a run would look at before it starts.

Models, data, templates and the directory of the run are read as the run reads them, as far as they are here; what is
elsewhere is named. Asks no network, starts nothing and writes nothing. Leaves out the arithmetic of plans (planning).
"""

from __future__ import annotations

from pathlib import Path

from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.critics.canaries import CanarySet
from capo_ray.critics.prompt import example, find_template
from capo_ray.data.epochs import in_steps
from capo_ray.data.example import prompt_example
from capo_ray.data.prompts import TRAIN_PROBLEMS, load_prompts
from capo_ray.data.read import is_here
from capo_ray.engines.options import check_options
from capo_ray.files.run_dir import check_claim, check_place
from capo_ray.models.chat import Encode
from capo_ray.planning.bundles import critics_here
from capo_ray.planning.estimate import estimate
from capo_ray.planning.look import HUB, Look
from capo_ray.planning.machine import this_machine
from capo_ray.planning.plan import describe, fits, plan_here
from capo_ray.program import OF_A_RUN, OF_LORA, need


def dry_run(config: Config) -> bool:
    """Print everything, the verdict last; whether the run could start, here or on what it is planned for. Raises
    ConfigError for options and templates that are wrong wherever it is."""
    look = Look(elsewhere=is_elsewhere(config))
    check_options(config)
    config = _in_steps(config, look)
    template = find_template(config.critic) if config.critic else None
    _critics(config, look)
    with look.noting():
        if not look.elsewhere:
            need(*OF_A_RUN, *([OF_LORA] if config.trainer.lora else []))
    encode = _policy(config, look)
    _data(config, look, encode)
    with look.noting():
        if config.run_dir is not None:
            check_claim(Path(config.run_dir).expanduser().resolve(), resume=config.resume)
        elif config.resume:
            raise ConfigError("resume: name the run to resume with run_dir=DIR")
        else:
            check_place(Path.cwd() / "runs")
    parts = [describe(config), *_epochs(config, look), estimate(config), prompt_example(config)]
    if template is not None:
        parts.append(example(config, template))
    verdict, sound = _verdict(config, look)
    print("\n".join([*parts, *verdict]))
    return sound


def is_elsewhere(config: Config) -> bool:
    """Whether what is planned is another machine than this one: a cluster, or one with GPUs where there is none."""
    return config.cluster.address is not None or (
        config.cluster.device == "gpu" and not this_machine(config.cluster).gpus
    )


def _critics(config: Config, look: Look) -> None:
    with look.noting():
        CanarySet.of(config)
    for voter in config.critic.voters if config.critic else ():
        look.unseen += [f"the critic's server {endpoint}" for endpoint in voter.endpoints]


def _policy(config: Config, look: Look) -> Encode | None:
    """What encodes prompts, where the policy's files are here; critics' files are looked at too."""
    lengths = {
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "rollout.max_response_tokens": config.rollout.max_response_tokens,
    }
    encode = None
    with look.noting():
        if policy := look.files(config.policy, "policy"):
            look.trains(config.policy, "policy", policy, longest=config.longest_in_a_row, lora=config.trainer.lora)
            policy.check_window("the policy", lengths)
            if config.critic and config.base_critic:
                policy.check_window(
                    "the critic", lengths | {"critic.max_critique_tokens": config.critic.max_critique_tokens}
                )
            encode = policy.encoder(config.policy.system_prompt, config.policy.chat_template)
    for place, voter in critics_here(config):
        with look.noting():
            if voter.model and (critic := look.files(voter.model, f"{place}.model")) and config.critic:
                written = {"critic.max_critique_tokens": config.critic.max_critique_tokens}
                critic.check_window("the critic", lengths | written)
    return encode


def _data(config: Config, look: Look, encode: Encode | None) -> None:
    data = config.data
    if data.kind == "arithmetic":
        look.problems = data.limit or TRAIN_PROBLEMS
        return
    held_out = data.evaluation if data.evaluation_prompts else None
    if held_out is not None and not look.sees(held_out):
        data = data.model_copy(update={"evaluation": None, "evaluation_prompts": 0})
    if not look.sees(data):
        return
    if encode is None:
        look.unseen.append("which prompts are too long: the policy's tokenizer is not here")
    with look.noting():
        prompts = load_prompts(
            config.model_copy(update={"data": data}), encode or (lambda question, system=None, /: ())
        )
        look.problems = len(prompts)


def _in_steps(config: Config, look: Look) -> Config:
    if config.epochs is not None and config.data.kind != "arithmetic" and not is_here(config.data):
        look.unseen.append(f"how many steps {config.epochs:g} epochs are: {config.data.path} is {HUB}")
        return config.model_copy(update={"epochs": None})
    with look.noting():
        return in_steps(config)
    return config


def _epochs(config: Config, look: Look) -> list[str]:
    prompts = config.steps * config.prompts_per_step
    if not look.problems:
        return []
    each = f"{prompts / look.problems:,.1f}"
    return [f"  {'epochs':<35}{each:>14}  ({prompts:,} prompts of {look.problems:,} problems)"]


def _verdict(config: Config, look: Look) -> tuple[list[str], bool]:
    """The last lines, and whether the run could start."""
    machine = this_machine(config.cluster)
    plan = plan_here(config, machine)
    if look.elsewhere:
        look.faults += plan.faults
    where = "on this machine"
    if look.elsewhere:
        where = "in that cluster" if config.cluster.address else f"where there are {plan.needs('GPU'):g} such GPUs"
    return look.verdict(str(machine), where, fits(plan, machine))
