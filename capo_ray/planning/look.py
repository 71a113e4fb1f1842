"""What a look without a start finds: faults, what could not be looked at, and the verdict on both.

Asks no network, starts nothing and writes nothing. Leaves out what each program looks at (training.dry_run, sft.plan).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from capo_ray.config.blocks import Source
from capo_ray.config.fault import ConfigError
from capo_ray.config.lora import Lora
from capo_ray.config.model import Model
from capo_ray.data.problem import DataError
from capo_ray.data.read import is_here
from capo_ray.files.run_dir import RunDirError
from capo_ray.models.find import ModelFiles, check_trained, find_model, folder_here, is_hub_id

HUB = "of the Hugging Face hub"


@dataclass(slots=True, kw_only=True)
class Look:
    """What became of looking."""

    elsewhere: bool
    """Whether what is planned is for another machine than this one."""
    faults: list[str] = field(default_factory=list)
    """Why it could not start, each in a line of its own."""
    unseen: list[str] = field(default_factory=list)
    """What was not looked at, and why."""
    problems: int | None = None
    """To train on; None where they were not counted."""

    @contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except (ConfigError, DataError, RunDirError) as error:
            self.faults += [line for line in str(error).splitlines() if line not in self.faults]

    def sees(self, data: Source) -> bool:
        """Whether that data set is to be looked at from here; notes where it is not."""
        if not is_here(data):
            self.unseen.append(f"{data.place}.path {data.path}: {HUB}")
        return is_here(data)

    def is_away(self, key: str, name: str) -> bool:
        """Whether the model's or tokenizer's folder that setting `key` names is not looked at from here; noted then."""
        if folder_here(name).is_dir():
            return False
        if is_hub_id(name):
            self.unseen.append(f"{key} {name}: {HUB}, and not in its cache here")
        elif self.elsewhere:
            self.unseen.append(f"{key} {name}: no folder here; it must be one where the run is")
        return is_hub_id(name) or self.elsewhere

    def trains(self, model: Model, field: str, files: ModelFiles, *, longest: int | None, lora: Lora | None) -> None:
        """Raises ConfigError where the trainer could not make the model that has these files, see `check_trained`."""
        if model.path == "random":
            return
        if find_spec("transformers") is None:
            self.unseen.append(f"whether {field} can be trained: transformers is not installed here")
            return
        check_trained(files.folder, field, longest=longest, lora=lora)

    def files(self, model: Model, field: str) -> ModelFiles | None:
        """The files of a model that are all here; None where some are away. Raises ConfigError where they do not fit,
        or are nowhere."""
        if model.path == "random":
            return self._random(model, field)
        names = {f"{field}.path": model.path, f"{field}.tokenizer": model.tokenizer}
        missing = {key: name for key, name in names.items() if name and not folder_here(name).is_dir()}
        away = [self.is_away(key, name) for key, name in missing.items()]
        if away and all(away):
            return None
        if find_spec("numpy") is None:
            self.unseen.append(f"the numbers in the weights of {field}: numpy is not installed here")
        here = {"path": str(folder_here(model.path)) if is_hub_id(model.path) else model.path}
        if model.tokenizer and folder_here(model.tokenizer).is_dir():
            here["tokenizer"] = str(folder_here(model.tokenizer))
        return find_model(model.model_copy(update=here), field, Path(), seed=0)

    def _random(self, model: Model, field: str) -> ModelFiles | None:
        if model.shape is None or model.tokenizer is None:
            raise ConfigError(f"{field}.path: a random model needs {field}.shape and {field}.tokenizer")
        if self.is_away(f"{field}.tokenizer", model.tokenizer):
            return None
        folder, size = folder_here(model.tokenizer), model.shape
        if not folder.is_dir():
            raise ConfigError(f"{field}.tokenizer: {model.tokenizer!r} is no folder here")
        return ModelFiles(folder=folder, tokenizer=folder, window=size.window, vocabulary=size.vocabulary)

    def verdict(self, machine: str, where: str, missing: Sequence[str] = ()) -> tuple[list[str], bool]:
        """The last lines, and whether it could start `where`; `missing` is what this machine lacks."""
        faults = [*self.faults, *(missing if not self.elsewhere else ())]
        lines = [f"this machine: {machine}; {'it does not fit: ' + '; '.join(missing) if missing else 'it fits'}"]
        lines += [f"not looked at: {what}" for what in self.unseen]
        lines += [f"fault: {fault}" for fault in faults]
        if faults:
            count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
            return [*lines, f"verdict: this run cannot start ({count})"], False
        seen = "as far as it could be looked at from here" if self.unseen else "everything was looked at"
        return [*lines, f"verdict: this run can start {where}; {seen}"], True
