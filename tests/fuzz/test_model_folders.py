"""Whatever a model's folder holds, it is found or refused in one line that names it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz.mutate import break_json_file, odd_bytes, odd_json, seeds
from model_folders import FAMILIES, make

from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.credit.recorded import Tokens
from capo_ray.models.find import find_model, shown
from capo_ray.planning.machine import shape_of

TALK = [{"role": "user", "content": "1 + 1?"}]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "sound", FAMILIES["gemma 3"])


def told(folder: Path, run_dir: Path) -> list[str]:
    """What a launch, a plan, a dry run and credit say of the model; nothing where they take it."""
    model = Model(path=str(folder))
    said = []
    for ask in (
        lambda: find_model(model, "policy", run_dir, seed=0).encoder(None)("1 + 1?"),
        lambda: shape_of(model),
        lambda: shown(TALK, model, add_generation_prompt=True),
        lambda: Tokens(folder).read("1 + 1?", None),
    ):
        try:
            ask()
        except (ConfigError, ValueError, OSError) as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_of_json(file: str, sound: Path, tmp_path: Path) -> None:
    for seed in seeds(40):
        folder = tmp_path / f"model{seed}"
        shutil.copytree(sound, folder)
        break_json_file(folder / file, seed)
        for line in told(folder, tmp_path / "run"):
            assert str(folder) in line or line.startswith("text "), (seed, line)
            assert len(line) < 700 and "\n" not in line and "\x1b" not in line, (seed, line)
        shutil.rmtree(folder)
    assert not (tmp_path / "run").exists()


def test_broken_weights(sound: Path, tmp_path: Path) -> None:
    data = (sound / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for seed in seeds(40):
        folder = tmp_path / f"model{seed}"
        shutil.copytree(sound, folder)
        if seed % 2:
            made = json.dumps(odd_json(header, seed)).encode("utf-8", errors="surrogatepass")
            made = len(made).to_bytes(8, "little") + made + data[8 + size :]
        else:
            made = odd_bytes(data, seed)
        (folder / "model.safetensors").write_bytes(made)
        for line in told(folder, tmp_path / "run"):
            assert str(folder) in line and "\n" not in line, (seed, line)
        shutil.rmtree(folder)


AGAIN = "get the model's files again"
MUST = "must be a whole number above 0, and it is"
BROKEN: dict[str, tuple[str, Any, str]] = {
    "a list": ("config.json", [], f"must hold an object, and holds a list; {AGAIN}"),
    "nothing in it": ("config.json", {}, f": `vocab_size` {MUST} missing: no model can be made of it; {AGAIN}"),
    "null": ("config.json", None, "must hold an object, and holds null"),
    "a text": ("config.json", {"vocab_size": "495"}, f': `vocab_size` {MUST} "495"'),
    "a template that is a number": (
        "tokenizer_config.json",
        {"chat_template": 5},
        "`chat_template`: it must be a",
    ),
    "a list of texts": ("tokenizer_config.json", {"chat_template": ["a"]}, "or a list of templates with name and"),
    "a token without text": (
        "tokenizer_config.json",
        {"eos_token": {}},
        "`eos_token`: it must be a text, or",
    ),
    "a unigram vocabulary": ("tokenizer.json", {"model": {"vocab": [["a", -1.0]]}}, "BPE vocabularies are supported"),
    "ids as texts": ("tokenizer.json", {"model": {"vocab": {"a": "0"}}}, "model.vocab must map tokens to integers"),
    "an odd added token": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 0}}, "added_tokens": [1]},
        "added_tokens must",
    ),
    "an odd decoder": (
        "tokenizer.json",
        {"model": {"vocab": {"a": 0}}, "decoder": "x"},
        "decoder must be an",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_said(name: str, sound: Path, tmp_path: Path) -> None:
    file, value, expected = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    if file == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(ConfigError) as error:
        find_model(Model(path=str(folder)), "policy", tmp_path, seed=0).encoder(None)
    said = str(error.value)
    assert said.startswith(("policy.path: ", "policy.tokenizer: ")) and f"{folder}/{file}" in said and expected in said


def test_weights_that_are_not_all_there(sound: Path, tmp_path: Path) -> None:
    def said(**config: Any) -> str:
        text = {**json.loads((sound / "config.json").read_text())["text_config"], **config}
        (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
        with pytest.raises(ConfigError) as error:
            find_model(Model(path=str(folder)), "policy", tmp_path, seed=0)
        return str(error.value)

    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    early = "a download that ended early, or files of two models"
    assert (
        f"config.json says 30 layers, and there are no weights of 28 of them (the first is layer 2): {early}"
        in said(num_hidden_layers=30)
    )
    assert "there are no weights of 2147483645 of them" in said(num_hidden_layers=2**31 - 1)  # none of which is made
    assert "config.json says 1 layers, and there are weights of 2: files of two models" in said(num_hidden_layers=1)
    assert "embed_tokens.weight is [" in said(hidden_size=16)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "model.safetensors"}}))
    assert f"{index} names 'one.safetensors', which is not there (1 of 2 files are missing)" in said()
    index.unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"policy.path: {weights} is not whole (it has " in said()
    weights.unlink()
    assert "holds no weights (no *.safetensors)" in said()
