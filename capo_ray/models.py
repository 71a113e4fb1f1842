"""Where a model's files are, and whether they fit together: folder, tokenizer, vocabulary, window, chat template.

Reads JSON only. Leaves out loading weights (engines) and what a machine can hold (planning).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.chat import Encode, check_marks, conversation, render, template_in
from capo_ray.config.blocks import Model
from capo_ray.config.run import ConfigError, conf_dir

log = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that is there."""

    folder: Path
    tokenizer: Path
    """Folder of the tokenizer."""
    window: int
    """Tokens of prompt and response together."""

    def check_window(self, what: str, lengths: Mapping[str, int]) -> None:
        """Raises ConfigError when `lengths`, by the fields that set them, are together more than the window."""
        if (tokens := sum(lengths.values())) > self.window:
            raise ConfigError(
                f"{what} at {self.folder} has a window of {self.window} tokens; {' + '.join(lengths)} = {tokens} do "
                "not fit. Lower one of them."
            )

    def check_continues(self, checkpoint: Path) -> None:
        """Raises ConfigError when the trainer's checkpoint in that folder is of a model of another shape."""
        saved = json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8"))["shapes"]
        here = tensor_shapes(self.folder)
        differs = next((name for name in saved if name in here and list(saved[name]) != here[name]), None)
        if here and (differs or not saved.keys() & here.keys()):
            where = "no tensor in common"
            if differs:
                where = f"{differs} is {saved[differs]} there and {here[differs]} here"
            raise ConfigError(
                f"policy.path: the checkpoint {checkpoint} is of another model than {self.folder}: {where}. Resume "
                "with the model that the run began with"
            )

    def encoder(self, system_prompt: str | None, chat_template: str | None = None) -> Encode:
        """What makes the token ids of the chat that ends where the policy's answer begins, out of a question and a
        system message that stands in for `system_prompt`. `chat_template` None: the tokenizer's own."""
        from tokenizers import Tokenizer

        from capo_ray.credit.tokens import read_tokenizer_json

        own, special = template_in(self.tokenizer)
        template = chat_template or own
        if template is None:
            raise ConfigError(
                f"policy.tokenizer: {self.tokenizer} has no chat template; use an instruction-tuned model's tokenizer, "
                "or set policy.chat_template"
            )
        if "strftime_now" in template:
            log.warning(
                "the chat template of %s writes today's date into every prompt: tomorrow they are others. Set "
                "policy.chat_template (conf/model has some with a fixed date)",
                self.tokenizer,
            )
        tokenizer = Tokenizer.from_str(read_tokenizer_json(self.tokenizer))

        def encode(question: str, system: str | None = None) -> tuple[int, ...]:
            text = render(template, conversation(question, system or system_prompt), special=special)
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        return encode


def folder_here(name: str) -> Path:
    """Where the files of a model or tokenizer are, or would be, without a network: shipped, a folder, or what was
    downloaded before."""
    if name.startswith("asset:"):
        return ASSETS / name.removeprefix("asset:")
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_hub_id(name):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return folder


def is_hub_id(name: str) -> bool:
    """owner/name"""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def shown(messages: Sequence[Mapping[str, str]], model: Model, *, add_generation_prompt: bool) -> str:
    """`messages` as `model` reads them, or why that is not known. Asks no network."""
    folder = folder_here(model.tokenizer or model.path)
    own, special = template_in(folder)
    template = model.chat_template or own
    if template is None:
        return f"(not known: the chat template of {model.tokenizer or model.path} is not here; chat_template sets one)"
    return render(template, messages, special=special, add_generation_prompt=add_generation_prompt)


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in the safetensors files of `folder`, from their headers."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes


def find_model(model: Model, field: str, run_dir: Path, *, seed: int) -> ModelFiles:
    """The files of `model`; a random one is made under `run_dir`. Raises ConfigError that names `field`."""
    folder = _folder(model, field, run_dir, seed)
    own = model.tokenizer is None or model.path == "random"
    tokenizer = folder if own else _here(str(model.tokenizer), f"{field}.tokenizer")
    shape = _read_json(folder / "config.json", field)
    _check_vocabulary(tokenizer, int(shape["vocab_size"]), model.chat_template, field)
    return ModelFiles(folder=folder, tokenizer=tokenizer, window=int(shape["max_position_embeddings"]))


def _folder(model: Model, field: str, run_dir: Path, seed: int) -> Path:
    if model.path == "random":
        return _random(model, field, run_dir / "models" / field.removesuffix(".model"), seed)
    if model.path.startswith("asset:"):
        folder = folder_here(model.path)
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in ASSETS.iterdir())) if ASSETS.is_dir() else "none"
            raise ConfigError(f"{field}.path: no model {model.path!r} ships with this package; there are: {there}")
        return folder
    return _here(model.path, f"{field}.path")


def _random(model: Model, field: str, folder: Path, seed: int) -> Path:
    from capo_ray.engines.random_model import make_random_model

    if model.shape is None or model.tokenizer is None:
        raise ConfigError(f"{field}.path: a random model needs {field}.shape and {field}.tokenizer")
    if not (folder / "config.json").is_file():
        tokenizer = _here(model.tokenizer, f"{field}.tokenizer")
        try:
            make_random_model(folder, model.shape, tokenizer=str(tokenizer), dtype=model.dtype, seed=seed)
        except ValueError as error:
            raise ConfigError(f"{field}.tokenizer: {error}") from error
    return folder


def _here(name: str, field: str) -> Path:
    """A folder, or a Hugging Face id's files from the cache or the hub."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    message = f"{field}: {name!r} is no folder here"
    if not is_hub_id(name):
        experiment = conf_dir() / "experiment" / f"{folder.name}.yaml"
        made = f". python -m capo_ray.sft +experiment={folder.name} makes it" if experiment.is_file() else ""
        if folder.name == "smollm2":
            made = f". python -m capo_ray.smollm2 out={name} makes it"
        raise ConfigError(f"{message}; name a folder or a Hugging Face id (owner/name){made}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except Exception as error:  # the hub's client raises errors of many libraries
        raise ConfigError(
            f"{message}, and the Hugging Face hub did not give it ({type(error).__name__}). Check the name, the "
            "network, and `hf auth login` for gated models; or download it and name its folder"
        ) from error


def _read_json(path: Path, field: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}.path: {path} cannot be read as a model's configuration: {error}") from error


def _check_vocabulary(tokenizer: Path, vocabulary: int, chat_template: str | None, field: str) -> None:
    from capo_ray.credit.tokens import read_tokenizer_json

    try:
        spec = json.loads(read_tokenizer_json(tokenizer))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}.tokenizer: {error}") from error
    tokens = dict(spec["model"]["vocab"]) | {entry["content"]: entry["id"] for entry in spec.get("added_tokens", [])}
    if max(tokens.values()) >= vocabulary:
        raise ConfigError(
            f"{field}.tokenizer: {tokenizer} has ids up to {max(tokens.values())}, the model's vocabulary ends at "
            f"{vocabulary - 1}: this tokenizer belongs to another model"
        )
    if chat_template is not None:
        check_marks(chat_template, tokens, field)
