"""`python -m capo_ray.config_docs > docs/configuration.md`: every field of the configuration, from its models.

And of the settings of supervised training and of a benchmark. Leaves out the rules between fields (config checks them,
and its messages state them) and the YAML files of conf/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capo_ray.config.listing import kind_of
from capo_ray.config.run import Config
from capo_ray.evaluate.suites import Benchmark
from capo_ray.sft.settings import Sft

HEAD = """\
# Configuration

Made by `python -m capo_ray.config_docs > docs/configuration.md` from the models of `capo_ray/config/`,
`sft/settings.py` and `evaluate/suites.py`; not edited by hand.

A run is composed by Hydra from the files of `conf/` and the command line, and checked once, before anything starts. An
experiment is a file in `conf/experiment/`; whatever it sets can be overridden:

```bash
python -m capo_ray.launch +experiment=tiny_cpu steps=5 reward=majority trainer.zero_stage=2
python -m capo_ray.launch +experiment=tiny_cpu critic=null algorithm=grpo   # without critiques
python -m capo_ray.launch +experiment=my_own.yaml                           # an experiment of your own
python -m capo_ray.launch config=my_run/config.yaml seed=1                  # a run's configuration given back
python -m capo_ray.launch run_dir=my_run resume=true                        # the same of the run that is resumed
```

An experiment of your own is a file like those of `conf/experiment/`, anywhere: what it starts from, what it overrides,
what it sets. `+experiment=` and `experiment=` are the same.

```yaml
# my_own.yaml
defaults:
  - tiny_cpu                  # any experiment of conf/experiment
  - override /reward: union   # another file of a group
  - _self_
name: mine
steps: 30
trainer:
  learning_rate: 1.0e-4
```

A run's `config.yaml` is whole, so nothing else is needed with it; files of groups and values that are given take the
place of its own. `--help` of each program lists the settings with their defaults. Brackets, commas and quotes mean
something to shells and here: put an argument that has some into single quotes, in zsh always.

`GROUP=NAME` takes another file of a group (`reward=majority` is `conf/reward/majority.yaml`), `FIELD=VALUE` sets one
value, `GROUP=null` leaves a block out. A model is the group `model` under the place it is for:
`model@policy=tiny_policy`. Another `path` alone is enough for another model: shape, chat template and tokenizer are
those of the path, from `conf/model` where that knows it, else from the model's own files, unless they are set beside
it. A run's directory as `path` means the policy that the run exported. What is set and has no effect is refused or
said. The defaults below are those of a field that no file sets; `dry_run=true` prints what a run would really have.
An unknown key, a wrong type or a broken rule ends the launch with the field, the value and what to do.

In the tables *required* means that there is no default, and a range stands beside the type. The source of a setting, or
of its default, is a paper (CAPO is [arXiv 2508.02298](https://arxiv.org/abs/2508.02298)), or the library that it is
handed to, with the name that it has there; *own* is this project.
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
    **{name.capitalize(): f"`{name}`" for name in ("algorithm", "trainer")},
    "Lora": "`trainer.lora`",
    **{name.capitalize(): f"`{name}`" for name in ("cluster", "tracking")},
}
"""Model -> title of its table, of a run."""
_BAR = "\\|"


BENCHMARKS = {"Benchmark": "A benchmark: `suite.NAME`", "Options": "`suite.NAME.options`"}


def page() -> str:
    """The whole of docs/configuration.md."""
    run, sft, benchmark = (model.model_json_schema() for model in (Config, Sft, Benchmark))
    parts = [HEAD]
    parts += _section({"Config": run, **run["$defs"]}, BLOCKS)
    parts += _section({"Sft": sft}, {"Sft": "Supervised training: `python -m capo_ray.sft`"})
    parts += _section({"Benchmark": benchmark, **benchmark["$defs"]}, BENCHMARKS)
    return "\n".join(parts)


def _section(blocks: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    for name, title in titles.items():
        about = blocks[name]["description"].replace("docs/algorithm.md", "[algorithm.md](algorithm.md)")
        yield f"## {title}\n\n{about}\n\n" + "\n".join(_table(blocks[name])) + "\n"


def _table(block: dict[str, Any]) -> Iterator[str]:
    required = block.get("required", [])
    yield "| field | type | unit | default | source | meaning |"
    yield "|---|---|---|---|---|---|"
    for name, spec in block["properties"].items():
        default = "*required*" if name in required else _default(spec)
        source = spec["source"] if spec["source"] != "own" else "*own*"
        cells = (f"`{name}`", kind_of(spec), spec["unit"], default, source, spec["description"])
        yield f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |"


def _default(spec: dict[str, Any]) -> str:
    value = spec.get("default")
    if isinstance(value, dict):
        return "its defaults" if value else "`{}`"
    if isinstance(value, bool) or value is None:
        return {True: "`true`", False: "`false`", None: "`null`"}[value]
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
