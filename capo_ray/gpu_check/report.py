"""What the check came to: a table for the terminal, JSON for programs, and a section for docs/performance.md.

All three are made from outcomes alone, and say first of all whether a GPU was measured. Leaves out the measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from capo_ray.gpu_check.notes import Device
from capo_ray.gpu_check.watching import Outcome

NO_GPU = (
    "NO GPU WAS MEASURED: device=cpu ran the same code on this machine's CPU with tiny shapes; its figures say nothing "
    "of a GPU."
)
Figures = Mapping[str, Any]


def measured_gpu(outcomes: Sequence[Outcome], device: Device) -> bool:
    """Whether anything here is a figure of a GPU."""
    return device == "gpu" and any(outcome.state == "ok" and outcome.name != "here" for outcome in outcomes)


def good(outcomes: Sequence[Outcome]) -> bool:
    """What cannot be done here is no fault; what was not reached may be one."""
    return all(outcome.state in ("ok", "skipped") for outcome in outcomes)


def as_json(outcomes: Sequence[Outcome], device: Device, day: date) -> dict[str, Any]:
    return {
        "date": day.isoformat(),
        "device": device,
        "measured_gpu": measured_gpu(outcomes, device),
        "machine": dict(_here(outcomes)),
        "parts": [asdict(outcome) | {"figures": dict(outcome.figures)} for outcome in outcomes],
    }


def table(outcomes: Sequence[Outcome], device: Device) -> str:
    lines = [] if measured_gpu(outcomes, device) else [nothing_measured(outcomes, device), ""]
    lines += [machine(outcomes), ""]
    lines.append(f"{'part':<12}{'state':<13}{'seconds':>8}{'limit':>7}  what it found")
    for outcome in outcomes:
        found = found_by(outcome)
        if outcome.said:
            found = [outcome.said, *found, f"log: {outcome.log}" if outcome.log and outcome.state != "skipped" else ""]
        first, *more = [line for line in found if line] or [""]
        lines.append(f"{outcome.name:<12}{outcome.state:<13}{outcome.seconds:>8.0f}{outcome.limit_s:>7.0f}  {first}")
        lines += [f"{'':<42}{line}" for line in more]
    return "\n".join(lines)


def nothing_measured(outcomes: Sequence[Outcome], device: Device) -> str:
    return NO_GPU if device == "cpu" else "NO GPU WAS MEASURED: no part that measures one ended well."


def machine(outcomes: Sequence[Outcome]) -> str:
    """One line on what is here."""
    here = _here(outcomes)
    if not here:
        return "what is here was not asked (parts=here)"
    cards = here.get("gpus") or []
    names = ", ".join(f"{card['name']} ({card['gib']:.0f} GiB, driver {card['driver']})" for card in cards)
    versions = ", ".join(f"{name} {version}" for name, version in here.get("versions", {}).items())
    return (
        f"{names or 'no GPU'}; {here.get('cores', '?')} cores, {here.get('memory_gib', '?')} GiB; "
        f"Python {here.get('python', '?')}, {versions}, CUDA {here.get('cuda') or 'none'}"
    )


def paragraph(outcomes: Sequence[Outcome], device: Device, day: date) -> str:
    """A section in Markdown, with what failed beside what went well."""
    title = "## One card" if measured_gpu(outcomes, device) else "## A trial of the GPU check that measured no GPU"
    about = f"{day.isoformat()}, `python -m capo_ray.gpu_check`: {machine(outcomes)}. Models have random weights."
    if not measured_gpu(outcomes, device):
        about = f"{nothing_measured(outcomes, device)} {about}"
    rows = ["| part | state | what it found |", "|---|---|---|"]
    for outcome in outcomes:
        found = "; ".join([line for line in (outcome.said, *found_by(outcome)) if line])
        rows.append(f"| {outcome.what} | {outcome.state} | {found.replace('|', '/')} |")
    return "\n".join([title, "", about, "", *rows, ""])


def found_by(outcome: Outcome) -> list[str]:
    """The figures of a part in words; as far as there are some."""
    kind = "train" if outcome.name.startswith("train_") else outcome.name
    words = {"here": _words_here, "train": _words_train, "engine": _words_engine, "world": _words_run}
    words |= {"ipc": _words_sync, "nccl": _words_sync, "shm": _words_sync, "turns": _words_turns}
    words |= dict.fromkeys(("resume", "in_turns"), _words_run)
    return words[kind](outcome.figures) if kind in words and outcome.figures else []


def _here(outcomes: Sequence[Outcome]) -> Figures:
    return next((outcome.figures for outcome in outcomes if outcome.name == "here"), {})


def _words_here(figures: Figures) -> list[str]:
    lines = []
    if "matmul_tflops" in figures:
        lines.append(f"a product of matrices in bf16: {figures['matmul_tflops']:g} TFLOP/s")
    if "driver_old" in figures:
        lines.append(f"driver {figures['driver_old']}")
    differing = [
        f"{name} {version}, pinned {figures['pinned'][name]}"
        for name, version in figures.get("versions", {}).items()
        if figures["pinned"].get(name, version) != version
    ]
    if differing:
        lines.append("other versions than the lock's: " + "; ".join(differing))
    return [*lines, *(f"{what} cannot be done here: {why}" for what, why in figures.get("cannot", {}).items())]


def _words_train(figures: Figures) -> list[str]:
    lines = [f"{figures['model']}, {_step(step)}" for step in figures.get("steps", [])]
    if (profile := figures.get("profile")) is not None:
        most = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in list(profile["most"].items())[:3])
        lines.append(f"the device was busy for {100 * profile['busy']:.0f} % of a step; longest: {most}")
    return lines


def _step(step: Figures) -> str:
    memory = f"peak {step['peak_gib']:.1f} GiB, planned {step['planned_gib']:.1f}"
    if step["error"]:
        return f"{step['tokens']:,} tokens: {step['error']}; {memory}"
    mfu = "unknown" if step["mfu"] is None else f"{100 * step['mfu']:.0f} %"
    off = 100 * (step["planned_gib"] / step["peak_gib"] - 1) if step["peak_gib"] else 0.0
    return f"{step['tokens']:,} tokens: {step['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, {memory} ({off:+.0f} %)"


def _words_engine(figures: Figures) -> list[str]:
    lines = []
    if "start_seconds" in figures:
        lines.append(f"start {figures['start_seconds']:.0f} s")
    if "sampled_tokens_per_second" in figures:
        rate = figures["sampled_tokens_per_second"]
        lines.append(f"sampling {rate:,.0f} tokens/s, {figures['responses']} responses at a time")
    if "prompt_tokens_per_second" in figures:
        lines.append(f"prompts {figures['prompt_tokens_per_second']:,.0f} tokens/s")
    return [f"{figures['model']}: {', '.join(lines)}"] if lines else []


def _words_sync(figures: Figures) -> list[str]:
    lines = []
    if "sync_1_seconds" in figures:
        times = ", ".join(f"{figures[key]:.2f} s" for key in ("sync_1_seconds", "sync_2_seconds") if key in figures)
        lines.append(f"{figures['transport']}, {figures['parameters'] / 1e6:,.1f} M parameters: syncs of {times}")
    gaps = [
        f"{words} {figures[key]:.2g}"
        for key, words in (("gap_before", "before"), ("gap_1", "after one"), ("gap_2", "after two"))
        if key in figures
    ]
    return [*lines, f"mean distance of log-probabilities {', '.join(gaps)}"] if gaps else lines


def _words_turns(figures: Figures) -> list[str]:
    return [
        f"weights {what}: {figures[f'{what}_freed_gib']:.1f} of {figures['awake_gib']:.1f} GiB given back in "
        f"{figures[f'{what}_sleep_seconds']:.2f} s, taken again in "
        f"{figures[f'{what}_wake_weights_seconds'] + figures[f'{what}_wake_cache_seconds']:.2f} s"
        for what in ("kept", "dropped")
        if f"{what}_wake_cache_seconds" in figures
    ]


def _words_run(figures: Figures) -> list[str]:
    lines = []
    if "killed_after" in figures:
        lines.append(f"killed after checkpoint {figures['killed_after']}")
    if "resumed_seconds" in figures:
        lines.append(f"resumed to the end in {figures['resumed_seconds']:.0f} s")
    if "seconds" in figures:
        lines.append(f"{figures['seconds']:.0f} s, start and end included")
    if figures.get("steps"):
        lines.append(f"steps {', '.join(map(str, figures['steps']))}")
    if figures.get("seconds_per_step") is not None:
        lines.append(f"{figures['seconds_per_step']:g} s for the last")
    if figures.get("wake_seconds") is not None:
        lines.append(f"{figures['wake_seconds']:g} s of them to wake up")
    if figures.get("gap") is not None:
        lines.append(f"log-probabilities apart by {figures['gap']:.2g} at most")
    if figures.get("valid_critiques") is not None:
        lines.append(f"{100 * figures['valid_critiques']:.0f} % of the critiques can be read")
    return ["; ".join(lines)] if lines else []
