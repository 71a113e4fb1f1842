"""What is evaluated and how: the program's own keys, and the configuration around them.

The model, its prompt and its engines are configuration as `capo_ray.launch` takes it: of the experiment that is named,
else of the run that made the model, else the usual. Leaves out the benchmarks (suites).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.run import Config, ConfigError, compose, conf_dir, validate
from capo_ray.config.sources import exported
from capo_ray.planning.machine import gpu_sizes
from capo_ray.program import own_keys
from capo_ray.types import JsonDict

OWN = ("model", "suite", "runs", "k", "count", "data_dir", "out", "replay")
RUNS = 3
UNUSED = f"trainer.tokens_per_micro_batch={10**9}"
"""Nothing is trained, so no response is too long for a trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str = ""
    suite: str = ""
    runs: int = RUNS
    """Greedy responses per problem."""
    k: int = 0
    """Sampled responses per problem."""
    count: int | None = None
    data_dir: Path | None = None
    out: Path | None = None
    replay: Path | None = None
    suite_overrides: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether critics are asked: where one is named."""
        return any(given.startswith("critic=") and given != "critic=null" for given in self.overrides)

    @property
    def folder(self) -> Path:
        """Where everything is kept; the same for the same model and suite, so that the same command goes on."""
        if self.out is not None:
            return self.out
        name = "-".join(part for part in self.model.removeprefix("asset:").split("/") if part)[-80:].lstrip("-.")
        return Path("evaluations") / f"{name}-{Path(self.suite).name.split('.')[0]}"


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError."""
    own, rest = own_keys(arguments, OWN)
    if bare := [argument for argument in rest if "=" not in argument and not argument.startswith("~")]:
        raise ConfigError(f"arguments are key=value, got {' '.join(bare)}")
    paths = {name: Path(own[name]).expanduser() for name in ("data_dir", "out", "replay") if name in own}
    options = Options(
        model=exported(own.get("model", "")),
        suite=own.get("suite", ""),
        runs=_number(own, "runs", RUNS, least=0) or 0,
        k=_number(own, "k", 0, least=0) or 0,
        count=_number(own, "count", None, least=1),
        suite_overrides=tuple(given for given in rest if given.lstrip("+").startswith("suite.")),
        overrides=tuple(given for given in rest if not given.lstrip("+").startswith("suite.")),
        **paths,
    )
    if options.replay is not None:
        if rest or set(own) - {"replay", "out"}:
            raise ConfigError("replay: it takes no other key than `out`: the folder says what was asked, and of whom")
        return options
    for name in ("model", "suite"):
        if not own.get(name):
            raise ConfigError(f"{name}: must be given; see python -m capo_ray.evaluate --help")
    if not options.runs and not options.k:
        raise ConfigError("runs, k: both are 0, so there is nothing to ask")
    return options


def _number(own: JsonDict, name: str, default: int | None, *, least: int) -> int | None:
    value = own.get(name)
    if value is None:
        return default
    if not value.isdigit() or int(value) < least:
        raise ConfigError(f"{name}: must be a whole number of at least {least}, got {value!r}")
    return int(value)


def configuration(options: Options) -> Config:
    """Raises ConfigError."""
    model = (f"policy.path='{options.model}'", UNUSED)
    if any(given.startswith("+experiment=") for given in options.overrides):
        return compose(["policy.tokenizer=null", *model, *options.overrides])
    if options.model.startswith("asset:"):
        return compose(["+experiment=tiny_cpu", *model, *options.overrides])
    base = ["+evaluation=default", *model]
    placed = any(given.startswith(("cluster=", "cluster.address=")) for given in options.overrides)
    if not placed and not gpu_sizes():
        base.append("cluster=cpu")
    for folder in Path(options.model).expanduser().parents[:2]:  # RUN_DIR/policy, RUN_DIR/exports/step_000400
        if (run := folder / "config.yaml").is_file():
            return _of_run(run, base, options)
    return compose([*base, *options.overrides])


def _of_run(path: Path, base: Sequence[str], options: Options) -> Config:
    """The configuration of the run that exported the model; groups and keys that are named take the place of its own.

    Raises ConfigError.
    """
    import yaml

    theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = {group.name for group in conf_dir().iterdir() if group.is_dir()}
    kind = theirs["data"]["kind"]  # some critics know one kind alone
    world = [f"data.kind={kind}", *(["data.path=null"] if kind == "arithmetic" else [])]
    ours = compose([*base, *world, *options.overrides]).model_dump(mode="json")
    keys = [given.lstrip("+").split("=", 1)[0] for given in options.overrides]
    for key in ["policy.path", "policy.tokenizer", "cluster.address", UNUSED.split("=")[0], *keys]:
        _copy(ours, theirs, key.split("@")[-1].split(".") if key not in groups else [key])
    if theirs["cluster"]["weight_transfer"] == "ipc":  # no trainer shares a GPU with the engines here
        theirs["cluster"]["weight_transfer"] = "nccl"
    try:
        return validate(theirs)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: the run's configuration cannot be used here: {error}\nName one with +experiment=NAME instead"
        ) from None


def _copy(source: JsonDict, target: JsonDict, path: Sequence[str]) -> None:
    """Put what stands at `path` in `source` there in `target` too."""
    *way, last = path
    value: Any = source
    for part in way:
        value = value[part]
        target = target.setdefault(part, {})
    target[last] = value[last]
