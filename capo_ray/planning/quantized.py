"""Whether a critic's `quantization` is what its model's files hold, before vLLM refuses it at the start.

Reads a config.json that is here; elsewhere a model's name says it, as far as it does. Leaves out the sizes of weights
(memory) and whether vLLM has kernels for it on the card at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from capo_ray.config.blocks import Rollout
from capo_ray.config.compose import conf_dir
from capo_ray.config.critic import Voter
from capo_ray.config.run import Config
from capo_ray.config.sources import known
from capo_ray.models.chat import read_json
from capo_ray.models.find import folder_here
from capo_ray.planning.bundles import critics_here

IN_FILES = {
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin"), "awq"),
    **dict.fromkeys(("gptq", "auto_gptq", "gptq_marlin"), "gptq"),
}
"""Of vLLM's `quantization` in four bits, what the files of such a model call it (`quant_method`)."""
WHILE_LOADING = ("fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only")
"""These are made of weights that are not quantised."""
PLAIN = "weights that are not quantised"


def quantization_of(engine: Rollout | Voter) -> str | None:
    """vLLM's `quantization` that the engine is given, if any."""
    named = engine.engine.get("quantization")
    return str(named) if named is not None else None


def quantization_faults(config: Config) -> Iterator[str]:
    """A line for each critic of which vLLM would refuse the two together."""
    for place, voter in critics_here(config):
        asked = quantization_of(voter)
        if voter.model is None or asked is None or (held := held_by(voter.model.path)) is None:
            continue
        wanted = PLAIN if asked in WHILE_LOADING else "fp8" if asked == "fp8" else IN_FILES.get(asked)
        if wanted is not None and wanted != held:
            yield (
                f"{place}.engine.quantization={asked}: it wants {wanted} in the model's files, and those of "
                f"{voter.model.path} hold {held}: {_advice(place, held)}"
            )


def _advice(place: str, held: str) -> str:
    if held != PLAIN:
        return f"leave `quantization` out, since vLLM sees what they hold, or name another {place}.model"
    return f"take {WHILE_LOADING[0]}, leave `quantization` out, or name a {place}.model that is quantised"


def held_by(path: str) -> str | None:
    """`quant_method` of a model's files, or PLAIN; None where that is not known here."""
    config = folder_here(path) / "config.json"
    if config.is_file():
        read = read_json(config)
        said = read.get("quantization_config") if isinstance(read, dict) else None
        return str(said.get("quant_method")) if isinstance(said, dict) else PLAIN
    name = path.rpartition("/")[2].casefold()
    named = next((kind for kind in ("awq", "gptq") if kind in name), None)
    return named or (PLAIN if _is_entry(path) else None)


@cache
def _is_entry(path: str) -> bool:
    """Of conf/model, whose others are in 16 bits. Kept, since a search for the best split makes a plan for each."""
    return known(path, conf_dir() / "model").get("path") == path
