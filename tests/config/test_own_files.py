"""Files of a user's own: an experiment by its path, a configuration given back, a run resumed by its directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import yaml

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.launch import main
from capo_ray.sft.settings import parse

MY = """\
defaults:
  - tiny_cpu
  - override /reward: union
  - _self_
name: mine
steps: 3
trainer:
  learning_rate: 1.0e-5
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Config:
    """The configuration of a run, as its directory has it."""
    config = compose(["+experiment=tiny_cpu", "steps=3", "reward=union", "run_dir=run", "dry_run=true"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


@pytest.mark.parametrize("given", ["+experiment=my.yaml", "experiment=./my.yaml", "experiment={here}/my.yaml"])
@pytest.mark.parametrize("first", ["", "# @package _global_\n", "\ufeff# mine\n"])
def test_an_experiment_by_its_path(given: str, first: str, tmp_path: Path) -> None:
    Path("my.yaml").write_text(first + MY, encoding="utf-8")
    before = set(os.listdir(tempfile.gettempdir()))
    config = compose([given.format(here=tmp_path), "seed=4"])
    assert (config.name, config.steps, config.reward.vote, config.seed) == ("mine", 3, "union", 4)
    assert (config.policy.path, config.trainer.learning_rate) == ("asset:tiny_policy", 1e-5)
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("capo_ray-own")}


def test_an_experiment_of_supervised_training_too() -> None:
    Path("my.yaml").write_text("defaults: [llama3b_sft, _self_]\nout: ./mine\nlearning_rate: 1.0e-6\n")
    config = parse(["experiment=my.yaml", "seed=3"])
    assert (config.out, config.learning_rate, config.seed) == ("./mine", 1e-6, 3)
    assert config.model.path == "meta-llama/Llama-3.2-3B-Instruct"


def test_a_configuration_is_given_back(kept: Config) -> None:
    again = compose(["config=run/config.yaml"])
    assert again == kept.model_copy(update={"run_dir": None, "dry_run": False})
    other = compose(
        ["config=run/config.yaml", "reward=majority", "critic=truth", "steps=9", "policy.path=a/b", "seed=2"]
    )
    assert (other.reward.vote, other.steps, other.policy.path, other.seed) == ("majority", 9, "a/b", 2)
    assert other.critic is not None and other.critic.kind == "truth"
    without = compose(["config=run/config.yaml", "critic=null", "algorithm=grpo"])
    assert without.critic is None and without.algorithm.advantage == "grpo"
    sized = compose(["config=run/config.yaml", "critic=null", "algorithm=grpo", "cluster=gpu", "size=one_gpu"])
    assert (sized.cluster.sharing, sized.cluster.weight_transfer) == ("pairs", "ipc")


def test_a_run_is_resumed_by_its_directory_alone(kept: Config) -> None:
    """As the last line of a run that ended says it."""
    resumed = compose(["run_dir=run", "resume=true"])
    assert resumed == kept.model_copy(update={"resume": True, "dry_run": False})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("experiment=none.yaml", "experiment: none.yaml cannot be read: No such file or directory"),
        ("experiment=bad.yaml", "experiment: bad.yaml is no YAML: while parsing a flow node"),
        ("experiment=bad.yaml", "in line 1, column 5"),
        ("experiment=list.yaml", "experiment: list.yaml must hold keys, got [1]"),
        ("experiment=part.yaml", "experiment: part.yaml begins with nothing: name the experiment that it changes, def"),
        ("experiment=twice.yaml", 'while constructing a mapping in "twice.yaml", '),
        ("experiment=nobody.yaml", "In 'nobody.yaml': Could not load 'experiment/nobody_knows'."),
        ("experiment=tiny_cpu experiment=part.yaml", "experiment: 'tiny_cpu' and 'part.yaml' are given; give one"),
        ("experiment=tiny_cpu size=one_gpu size=two_nodes", "size: 'one_gpu' and 'two_nodes' are given; give one"),
        ("experiment=tiny_cpu hydra.run.dir=x dry_run=true", "hydra.run.dir: Hydra only composes here, and of "),
        ("experiment=tiny_cpu +hydra/job_logging=none dry_run=true", "hydra/job_logging: Hydra only composes here"),
        ("resume=true", "resume: name the run to resume with run_dir=DIR"),
        ("config=none", "config: none cannot be read: No such file or directory"),
        ("config=.", "config: . cannot be read: Is a directory"),
        ("config=bad.yaml", "config: bad.yaml is no YAML: "),
        ("config=list.yaml", "config: list.yaml must hold a configuration such as a run's config.yaml"),
        (
            "config=part.yaml",
            "config: part.yaml has no `policy`, so it is no whole configuration; +experi",
        ),
        ("config=bytes.yaml", "config: bytes.yaml cannot be read: it is no UTF-8 text"),
        ("config=run/config.yaml experiment=tiny_cpu", "config, experiment: both say where everything else comes from"),
        (
            "config=run/config.yaml ~critic.model",
            "~critic.model: this goes with an experiment, and config= names a whole file",
        ),
        ("config=run/config.yaml stepz=3", "stepz: no such key; did you mean steps?"),
        ("run_dir=none resume=true", "run_dir: none holds no run to resume (no config.yaml)"),
    ],
)
def test_what_is_no_file_of_the_kind(
    kept: Config, given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text("a: [")
    Path("list.yaml").write_text("[1]")
    Path("part.yaml").write_text("steps: 3")
    Path("twice.yaml").write_text("defaults: [tiny_cpu, _self_]\nsteps: 3\nsteps: 4\n")
    Path("nobody.yaml").write_text("defaults: [nobody_knows, _self_]")
    Path("bytes.yaml").write_bytes(b"name: caf\xe9")
    assert main(given.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1 and "Traceback" not in said
    assert "own_0" not in said and "raised while composing" not in said


def test_two_sources_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        compose(["config=a", "+experiment=tiny_cpu"])
