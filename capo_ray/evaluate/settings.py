"""What is evaluated and how: the program's own keys, and the configuration around them.

The model, its prompt and its engines are configuration as `capo_ray.launch` takes it: of the experiment that is named,
else of the run that made the model, else the usual. Leaves out the benchmarks (suites).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capo_ray.config.block import setting
from capo_ray.config.compose import compose, conf_dir, validate
from capo_ray.config.fault import ConfigError
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.config.run import Config
from capo_ray.config.sources import exported
from capo_ray.planning.machine import gpu_sizes
from capo_ray.types import JsonDict

UNUSED = f"trainer.tokens_per_micro_batch={10**9}"
"""Nothing is trained, so no response is too long for a trainer."""


class Options(BesideRun):
    """Of this program."""

    model: str | None = setting("folder, Hugging Face id, or RUN_DIR/policy: with that run's prompt and engine", None)
    suite: str | None = setting(
        "of conf/suite, one benchmark such as gsm8k, arithmetic (the tiny world), or a file", None
    )
    runs: int = setting("greedy responses per problem", 3, ge=0)
    k: int = setting("sampled responses per problem: avg@k, pass@k, maj@k", 0, ge=0)
    count: int | None = setting("the first so many problems of each benchmark; null: all", None, ge=1)
    data_dir: AnyPath | None = setting("where NAME.jsonl or NAME.parquet of benchmarks are; null: downloaded", None)
    out: AnyPath | None = setting("folder of everything; null: evaluations/MODEL-SUITE", None)
    replay: AnyPath | None = setting("folder of before, whose figures are shown again", None)

    @property
    def suite_overrides(self) -> tuple[str, ...]:
        """`suite.NAME.KEY=VALUE`: of a benchmark."""
        return tuple(given for given in self.overrides if given.lstrip("+").startswith("suite."))

    @property
    def configured(self) -> tuple[str, ...]:
        """What is given of a run's configuration."""
        return tuple(given for given in self.overrides if not given.lstrip("+").startswith("suite."))

    @property
    def judged(self) -> bool:
        """Whether critics are asked: where one is named."""
        return any(given.startswith("critic=") and given != "critic=null" for given in self.configured)

    @property
    def folder(self) -> Path:
        """Where everything is kept; the same for the same model and suite, so that the same command goes on."""
        if self.out is not None:
            return self.out
        name = "-".join(part for part in (self.model or "").removeprefix("asset:").split("/") if part)[-80:].lstrip(
            "-."
        )
        return Path("evaluations") / f"{name}-{Path(self.suite or '').name.split('.')[0]}"


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError."""
    options = read_own(Options, arguments)
    if options.replay is not None:
        if options.overrides or options.model_fields_set - {"replay", "out", "overrides"}:
            raise ConfigError("replay: it takes no other key than `out`: the folder says what was asked, and of whom")
        return options
    if options.model is None or options.suite is None:
        missing = "suite" if options.model else "model"
        raise ConfigError(f"{missing}: must be given; see python -m capo_ray.evaluate --help")
    if not options.runs and not options.k:
        raise ConfigError("runs, k: both are 0, so there is nothing to ask")
    return options.model_copy(update={"model": exported(options.model)})


def configuration(options: Options) -> Config:
    """Raises ConfigError."""
    model = (f"policy.path='{options.model}'", UNUSED)
    if any(given.startswith("+experiment=") for given in options.configured):
        return compose(["policy.tokenizer=null", *model, *options.configured])
    if (options.model or "").startswith("asset:"):
        return compose(["+experiment=tiny_cpu", *model, *options.configured])
    base = ["+evaluation=default", *model]
    placed = any(given.startswith(("cluster=", "cluster.address=")) for given in options.configured)
    if not placed and not gpu_sizes():
        base.append("cluster=cpu")
    for folder in Path(options.model or "").expanduser().parents[:2]:  # RUN_DIR/policy, RUN_DIR/exports/step_000400
        if (run := folder / "config.yaml").is_file():
            return _of_run(run, base, options)
    return compose([*base, *options.configured])


def _of_run(path: Path, base: Sequence[str], options: Options) -> Config:
    """The configuration of the run that exported the model; groups and keys that are named take the place of its own.

    Raises ConfigError.
    """
    import yaml

    theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = {group.name for group in conf_dir().iterdir() if group.is_dir()}
    kind = theirs["data"]["kind"]  # some critics know one kind alone
    world = [f"data.kind={kind}", *(["data.path=null"] if kind == "arithmetic" else [])]
    ours = compose([*base, *world, *options.configured]).model_dump(mode="json")
    keys = [given.lstrip("+").split("=", 1)[0] for given in options.configured]
    if not options.judged:  # by nobody, then: theirs may be one that judges in a run alone
        keys += ["critic", "algorithm"]
    for key in ["policy.path", "policy.tokenizer", "cluster.address", UNUSED.split("=")[0], *keys]:
        _copy(ours, theirs, key.split("@")[-1].split(".") if key not in groups else [key])
    theirs["cluster"]["sharing"] = "apart"  # there is no trainer here to share a GPU with
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
