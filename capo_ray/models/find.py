"""Where a model's files are, and whether they fit together: folder, tokenizer, vocabulary, window, chat template.

Leaves out what one file says (files), loading weights (engines) and what a machine can hold (planning).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.config.compose import conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.config.lora import Lora, difference
from capo_ray.config.model import Model
from capo_ray.models.chat import Encode, check_marks, conversation, read_json, render, template_in
from capo_ray.models.files import check_finite, check_weights, read_decoder, tensor_shapes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

LEFT_OUT = ("*.bin", "*.pth", "*.gguf", "original/*")
"""Files of a repository on the hub that nothing here reads: the same weights once more."""
ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that is there."""

    folder: Path
    tokenizer: Path
    """Folder of the tokenizer."""
    window: int
    """Tokens of prompt and response together."""
    vocabulary: int
    """Entries of the embedding."""

    def check_window(self, what: str, lengths: Mapping[str, int]) -> None:
        """Raises ConfigError when `lengths`, by the fields that set them, are together more than the window."""
        if (tokens := sum(lengths.values())) > self.window:
            raise ConfigError(
                f"{what} at {self.folder} has a window of {self.window} tokens; {' + '.join(lengths)} = {tokens} do "
                "not fit. Lower one of them."
            )

    def check_continues(self, checkpoint: Path, lora: Lora | None = None) -> None:
        """Raises ConfigError when the trainer's checkpoint in that folder is of a model of another shape, or of another
        adapter than `lora`."""
        check_adapter(checkpoint, lora, self.folder, "trainer.lora")
        if lora is not None:  # the checkpoint has no other tensors than the adapter's
            return
        description = read_json(checkpoint / "trainer.json")
        saved = description.get("shapes") if isinstance(description, dict) else None
        if not isinstance(saved, dict):
            raise ConfigError(f"{checkpoint / 'trainer.json'} does not say the shapes of the checkpoint: it is broken")
        here = tensor_shapes(self.folder)
        differs = next((name for name in saved if name in here and saved[name] != here[name]), None)
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
        own = template_in(self.tokenizer)
        template = chat_template or own.text
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
        source = "policy.chat_template" if chat_template else own.source
        tokenizer = tokenizer_in(self.tokenizer, "policy.tokenizer", vocabulary=self.vocabulary)

        def encode(question: str, system: str | None = None) -> tuple[int, ...]:
            talk = conversation(question, system or system_prompt)
            text = render(template, talk, special=own.special, source=source)
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        return encode


def tokenizer_in(folder: Path, field: str, *, vocabulary: int | None = None) -> Tokenizer:
    """The tokenizer in `folder`. Tokens from `vocabulary` on, for which the model has no embedding, are text to it like
    any other. Raises ConfigError that names `field`, also where what it decodes to cannot be told token by token."""
    from tokenizers import Tokenizer

    from capo_ray.credit.tokens import TokenTable, read_tokenizer_json

    with _fault_of(field, folder / "tokenizer.json"):
        text, spec = read_tokenizer_json(folder)
        TokenTable.from_tokenizer_json(spec)
        if vocabulary is not None and any(entry["id"] >= vocabulary for entry in spec.get("added_tokens") or []):
            known = [entry for entry in spec["added_tokens"] if entry["id"] < vocabulary]
            text = json.dumps({**spec, "added_tokens": known})
        try:
            return Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more special
            raise ConfigError(f"{folder}/tokenizer.json: the tokenizers library does not read it: {error}") from error


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
    own = template_in(folder)
    template = model.chat_template or own.text
    if template is None:
        return f"(not known: the chat template of {model.tokenizer or model.path} is not here; chat_template sets one)"
    source = "chat_template" if model.chat_template else own.source
    return render(template, messages, special=own.special, add_generation_prompt=add_generation_prompt, source=source)


def find_model(model: Model, field: str, run_dir: Path, *, seed: int) -> ModelFiles:
    """The files of `model`; a random one is made under `run_dir`. Raises ConfigError that names `field`."""
    folder = _folder(model, field, run_dir, seed)
    if is_adapter(folder):
        raise ConfigError(
            f"{field}.path: {folder} is an adapter and no model; python -m capo_ray.export {folder} merge=true "
            "out=MODEL makes one of it"
        )
    own = model.tokenizer is None or model.path == "random"
    tokenizer = folder if own else find_folder(str(model.tokenizer), f"{field}.tokenizer")
    with _fault_of(f"{field}.path", folder / "config.json"):
        decoder = read_decoder(folder)
    tokens = check_fit(tokenizer, decoder.vocabulary, field)
    if model.chat_template is not None:
        check_marks(model.chat_template, tokens, field)
    with _fault_of(f"{field}.path", folder / "config.json"):
        check_weights(folder, decoder)
        if find_spec("numpy"):  # whatever loads weights has it
            check_finite(folder)
    return ModelFiles(folder=folder, tokenizer=tokenizer, window=decoder.window, vocabulary=decoder.vocabulary)


def check_trained(path: Path, field: str, *, longest: int | None = None, lora: Lora | None = None) -> None:
    """Raises ConfigError where the trainer cannot make the model of that folder, or of that config.json, cannot put
    several sequences of `longest` tokens (None: it will not) into one row of it, or finds no layers for `lora`."""
    from capo_ray.engines.causal_model import check_class, check_targets

    with _fault_of(f"{field}.path", path if path.suffix == ".json" else path / "config.json"):
        check_class(str(path), longest=longest)
        if lora is not None:
            check_targets(str(path), lora.targets)


def check_adapter(checkpoint: Path, lora: Lora | None, base: Path, field: str) -> None:
    """Raises ConfigError when what trainer ranks wrote to `checkpoint` is of another adapter than `lora`, or of one to
    other weights than those of the folder `base`."""
    from capo_ray.engines.lora import identity_of

    saved = read_json(checkpoint / "trainer.json")
    saved = saved if isinstance(saved, dict) else {}
    if differs := difference(saved.get("lora"), lora.shape() if lora else None):
        raise ConfigError(
            f"{field}: the checkpoint {checkpoint} is of another training: {differs}. Resume with what it began with, "
            "or begin another"
        )
    if lora is not None and saved.get("base") != identity_of(str(base)):
        raise ConfigError(
            f"{field}: the checkpoint {checkpoint} is of an adapter to other weights than those in {base}. Resume with "
            "the model that it began with"
        )


def check_fit(tokenizer: Path, vocabulary: int, field: str) -> set[str]:
    """The tokens of the tokenizer in that folder, for a model with so many embeddings. Raises ConfigError where they
    belong to different models."""
    with _fault_of(f"{field}.tokenizer", tokenizer / "tokenizer.json"):
        template_in(tokenizer)
        return _vocabulary(tokenizer, vocabulary)


@contextmanager
def _fault_of(field: str, file: Path) -> Iterator[None]:
    """What is wrong with files inside is a ConfigError that begins with the setting that named them, and names `file`
    unless it names another."""
    try:
        yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        said = said if str(file.parent) in said else f"{file}: {said}"
        said = said if said.startswith(f"{field.rpartition('.')[0]}.") else f"{field}: {said}"
        raise ConfigError(said) from error


def is_adapter(folder: Path) -> bool:
    """Whether a trainer, or peft, has written an adapter there and no model."""
    weights = {path.name for path in folder.glob("*.safetensors")}
    return (folder / "adapter_config.json").is_file() and weights <= {"adapter_model.safetensors"}


def _folder(model: Model, field: str, run_dir: Path, seed: int) -> Path:
    if model.path == "random":
        return _random(model, field, run_dir / "models" / field.removesuffix(".model"), seed)
    if model.path.startswith("asset:"):
        folder = folder_here(model.path)
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in ASSETS.iterdir())) if ASSETS.is_dir() else "none"
            raise ConfigError(f"{field}.path: no model {model.path!r} ships with this package; there are: {there}")
        return folder
    return find_folder(model.path, f"{field}.path")


def _random(model: Model, field: str, folder: Path, seed: int) -> Path:
    from capo_ray.engines.random_model import make_random_model

    if model.shape is None or model.tokenizer is None:
        raise ConfigError(f"{field}.path: a random model needs {field}.shape and {field}.tokenizer")
    if not (folder / "config.json").is_file():
        tokenizer = find_folder(model.tokenizer, f"{field}.tokenizer")
        try:
            make_random_model(folder, model.shape, tokenizer=str(tokenizer), dtype=model.dtype, seed=seed)
        except ValueError as error:
            raise ConfigError(f"{field}.tokenizer: {error}") from error
    return folder


def find_folder(name: str, field: str) -> Path:
    """A folder, one that is shipped, or a Hugging Face id's files from the cache or the hub. Raises ConfigError."""
    folder = folder_here(name) if name.startswith("asset:") else Path(name).expanduser()
    if folder.is_dir():
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
        return Path(snapshot_download(name, ignore_patterns=list(LEFT_OUT)))
    except Exception as error:  # the hub's client raises errors of many libraries
        raise ConfigError(
            f"{message}, and the Hugging Face hub did not give it ({type(error).__name__}). Check the name, the "
            "network, and `hf auth login` for gated models; or download it and name its folder"
        ) from error


def _vocabulary(tokenizer: Path, vocabulary: int) -> set[str]:
    """The tokens that a model with an embedding of that many entries can read. Added special tokens alone may be beyond
    it, as a text model's are that shares its tokenizer with one that sees images. Raises ConfigError."""
    from capo_ray.credit.tokens import read_tokenizer_json, vocabulary_of

    _, spec = read_tokenizer_json(tokenizer)
    tokens, added = vocabulary_of(spec)
    if not tokens:
        raise ConfigError("its model.vocab is empty")
    beyond = {token for token, number in tokens.items() if number >= vocabulary}
    if beyond - {entry["content"] for entry in added if entry.get("special")}:
        raise ConfigError(
            f"{tokenizer} has ids up to {max(tokens.values())}, the model's vocabulary ends at {vocabulary - 1}: this "
            "tokenizer belongs to another model"
        )
    if beyond:
        log.info(
            "%s has tokens that the model has no embedding for, left out: %s", tokenizer, ", ".join(sorted(beyond))
        )
    return tokens.keys() - beyond
