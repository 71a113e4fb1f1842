"""Is what the run itself asks for at hand: room, models, data, critics on servers, wandb, its directory.

Asks the Hugging Face hub for what is not here, and critics' servers what they serve. Leaves out the machine (host,
gpus) and the other nodes of a cluster (cluster).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from capo_ray.config.blocks import Source, Tracking
from capo_ray.config.compose import conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.config.run import Config
from capo_ray.data.epochs import in_steps
from capo_ray.data.problem import DataError
from capo_ray.data.read import is_here
from capo_ray.doctor.finding import Finding, fail, listed, ok, warn
from capo_ray.files.run_dir import RunDirError, check_claim
from capo_ray.models.find import ASSETS, LEFT_OUT, folder_here, is_hub_id
from capo_ray.planning.bundles import critics_here
from capo_ray.planning.machine import Machine
from capo_ray.planning.memory import BYTES, GIB
from capo_ray.planning.plan import fits, plan_here

POINTER = b"version https://git-lfs"
"""What a file begins with whose content git-lfs has not fetched."""


def room(config: Config, machine: Machine, where: str) -> Finding:
    """Cores, memory and GPUs against the plan. `where`: here, or in the cluster."""
    plan = plan_here(config, machine)
    if missing := fits(plan, machine):
        return fail(
            "room",
            f"missing: {'; '.join(missing)}",
            "take an experiment that fits (below), a larger machine or cluster, or fewer workers; dry_run=true shows "
            "the plan",
        )
    asked = f"{plan.needs('GPU'):g} GPUs and {plan.needs('CPU'):g} cores"
    if plan.device == "gpu" and plan.memory_gib:
        asked += f", and {plan.memory_words}"
    return ok("room", f"{config.name} needs {asked}; {where}: {machine}")


def models(config: Config) -> list[tuple[str, Model]]:
    """The models of the run with their places in the configuration, as errors name them."""
    critics = [(f"{place}.model", voter.model) for place, voter in critics_here(config) if voter.model is not None]
    return [("policy", config.policy), *critics]


def folders(config: Config) -> list[str]:
    """Of the models that are here, those from the hub's cache too; what ships with the package is wherever that is."""
    found = (folder_here(model.path) for _, model in models(config))
    return [str(folder) for folder in found if folder.is_dir() and folder.parent != ASSETS]


def model_files(place: str, model: Model, ask_hub: Callable[[str], str], *, cache_free_gib: float) -> Finding:
    """`ask_hub`: why the hub does not give a model; empty where it does."""
    if model.path == "random":
        if model.tokenizer is None:
            return fail(place, "random weights without a tokenizer", f"pass {place}.tokenizer=FOLDER")
        return _tokenizer(place, model.tokenizer)
    folder = folder_here(model.path)
    if folder.is_dir():
        if faults := faults_of(folder):
            return fail(place, f"{folder}: {listed(faults, 3)}", "download it again, whole")
        return ok(place, f"{model.path}, files whole" if folder.parent == ASSETS else f"{folder}, files whole")
    if not is_hub_id(model.path):
        made = conf_dir() / "experiment" / f"{folder.name}.yaml"
        fix = f"name a folder or a Hugging Face id (owner/name) with {place}.path=..."
        if made.is_file():
            fix = f"make it: python -m capo_ray.sft +experiment={folder.name}"
        return fail(place, f"{model.path!r} is no folder here", fix)
    if reason := ask_hub(model.path):
        return fail(
            place,
            f"{model.path} is not here, and the hub does not give it: {reason}",
            f"`hf auth login` and accept its terms, mend the network, or bring its folder: {place}.path=FOLDER",
        )
    size = model.shape.parameters * BYTES["bfloat16"] / GIB if model.shape else 0.0
    if size > cache_free_gib:
        return fail(
            place,
            f"{model.path} is not here; its {size:.0f} GiB do not fit the cache, which has {cache_free_gib:.0f} left",
            "set HF_HOME to a larger disk",
        )
    much = f"about {size:.0f} GiB" if model.shape else "as much as its weights are"
    left_out = " ".join(f"--exclude '{pattern}'" for pattern in LEFT_OUT)
    return warn(
        place,
        f"{model.path} is not here; {much} will be downloaded at the start",
        f"hf download {model.path} {left_out}",
    )


def _tokenizer(place: str, name: str) -> Finding:
    folder = folder_here(name)
    if (folder / "tokenizer.json").is_file() or (not folder.is_dir() and is_hub_id(name)):
        return ok(place, f"random weights, tokenizer {name}")
    return fail(place, f"{folder} has no tokenizer.json", f"name a tokenizer's folder: {place}.tokenizer=FOLDER")


def faults_of(folder: Path) -> list[str]:
    """What keeps a model in `folder` from being loaded."""
    faults = [f"no {name}" for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        faults += [f"no {name}" for name in wanted if not (folder / name).is_file()]
    elif not any(folder.glob("*.safetensors")):
        faults.append("no *.safetensors")
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                faults.append(f"{path.name} is a git-lfs pointer (git lfs pull)")
    return faults


def ask_hub(name: str, *, kind: str = "model", endpoint: str | None = None) -> str:
    """Why the Hugging Face hub does not give `name`, in a few words; empty when it does. Takes ten seconds at most."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi(endpoint=endpoint).auth_check(name, repo_type=kind)
    except GatedRepoError:
        return "it is gated, and the login here (if any) has no access"
    except RepositoryNotFoundError:
        return "there is none of that name, or it is private"
    except Exception as error:  # the hub's client raises errors of many libraries
        return f"it cannot be reached ({type(error).__name__})"
    return ""


def sources(config: Config) -> list[Source]:
    """The data sets that the run reads; none in the tiny world."""
    if config.data.kind == "arithmetic":
        return []
    return [config.data, *([config.data.evaluation] if config.data.evaluation else [])]


def data(source: Source, ask_hub: Callable[[str], str]) -> Finding:
    """Whether the problems can be had; `python -m capo_ray.data check` looks at the rows."""
    place, name = source.place, str(source.path)
    path = Path(name).expanduser()
    if path.exists():
        return ok(place, str(path))
    if not is_hub_id(name) or path.suffix in (".jsonl", ".gz", ".parquet"):
        return fail(place, f"there is no file {path}", f"pass {place}.path=FILE.jsonl, a folder or a Hugging Face id")
    if importlib.util.find_spec("datasets") is None:
        return fail(place, f"{name} is on the hub, and `datasets` is not installed", "pip install datasets")
    if reason := ask_hub(name):
        return warn(
            place,
            f"the hub does not give {name}: {reason}; well only if it was loaded here before",
            f"elsewhere: hf download --repo-type dataset {name} --local-dir FOLDER; then {place}.path=FOLDER",
        )
    return ok(place, f"{name} on the Hugging Face hub")


def epochs(config: Config) -> Finding:
    """How many steps the run's epochs are, where the problems are here to be counted."""
    passes = f"{config.epochs:g} passes over the problems"
    if config.data.kind != "arithmetic" and not is_here(config.data):
        return warn(
            "epochs",
            f"{passes} of {config.data.path} are counted when the run starts: they are not here",
            "steps=N in place of epochs, where the length must be known beforehand",
        )
    try:
        steps = in_steps(config).steps
    except DataError as error:
        return fail("epochs", str(error), "python -m capo_ray.data check says what is wrong with the rows")
    return ok("epochs", f"{passes} are {steps:,} steps")


def critic_servers(config: Config) -> Finding:
    """Whether the servers of critics answer and serve what the configuration names."""
    from capo_ray.training.build_critics import check_servers

    servers = [url for voter in (config.critic.voters if config.critic else ()) for url in voter.endpoints]
    if not servers:
        return ok("critic servers", "none are asked")
    try:
        check_servers(config)
    except ConfigError as error:
        return fail("critic servers", str(error), "start the servers, or mend the names: docs/critics.md")
    return ok("critic servers", f"{len(servers)} answer")


def wandb(tracking: Tracking) -> Finding:
    if tracking.wandb == "off":
        return ok("wandb", "off")
    if importlib.util.find_spec("wandb") is None:
        return warn("wandb", "not installed; the run goes on without it", "pip install wandb, or tracking.wandb=off")
    from capo_ray.records.sinks import has_key, wandb_mode

    mode, key = wandb_mode(tracking), has_key()
    if mode == "online" and not key:
        return fail("wandb", "online was asked for, and nobody is logged in", "wandb login, or set WANDB_API_KEY")
    if mode == "offline" and tracking.wandb == "auto":
        return warn(
            "wandb",
            "nobody is logged in: it is written below the run's directory",
            "wandb login, or set WANDB_API_KEY; tracking.wandb=offline if that is meant",
        )
    return ok("wandb", mode)


def run_dir(config: Config, folder: Path) -> Finding:
    """Whether the run can write there."""
    try:
        check_claim(folder, resume=config.resume)
    except RunDirError as error:
        return fail("run_dir", str(error), "resume=true, or another run_dir")
    return ok("run_dir", str(folder))
