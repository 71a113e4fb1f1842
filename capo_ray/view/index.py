"""An index of all responses of a run, live or finished.

Files are read newest first, and once: `Index.refresh` goes on where it stopped, takes in what a live run has written
since, and forgets what a run that went back has removed. A file that cannot be read hides itself alone, until it is
written anew. Leaves out: what is in a file (see `sources`).
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from capo_ray.records.ledger import LedgerError
from capo_ray.records.ledger_columns import RESPONSES
from capo_ray.view.records import Entry
from capo_ray.view.sources import source_of


class NoRun(ValueError):
    """There is nothing to look at; the message says where it was looked for."""


def check_run(run_dir: Path) -> None:
    """Raises NoRun where there is no run, not even one that has just begun."""
    if not run_dir.is_dir():
        raise NoRun(f"{run_dir} is not a directory: name the run_dir of a run, such as runs/NAME")
    if not any((run_dir / name).exists() for name in ("config.yaml", "metrics.jsonl", RESPONSES, "samples")):
        raise NoRun(
            f"{run_dir} holds no run (no config.yaml, metrics.jsonl, {RESPONSES}/ or samples/): name the run_dir of one"
        )


class Index:
    """All responses of a run, newest step first. One thread may refresh it while others read."""

    def __init__(self, run_dir: Path, *, trust: bool = False) -> None:
        """`trust`: see `records.scheme`."""
        self.run_dir = run_dir
        self._trust = trust
        self.source = source_of(run_dir, trust=trust)
        self._files: dict[str, list[Entry]] = {}
        """Never changed, but replaced, so that whoever reads has a whole one."""
        self._sorted: tuple[dict[str, list[Entry]], list[Entry]] = self._files, []
        self.num_files = 0
        """Files there are; `num_read` of them have been read."""
        self.broken: dict[str, LedgerError] = {}
        """Files that cannot be read, and why."""
        self._stamps: dict[str, object] = {}
        """Of the broken ones."""

    @property
    def num_read(self) -> int:
        return len(self._files) + len(self.broken)

    def lose(self, name: str, why: LedgerError) -> None:
        """Hide a file, since something in it cannot be read."""
        self._stamps[name] = self.source.stamp(name)
        self.broken = {**self.broken, name: why}
        self._files = {other: entries for other, entries in self._files.items() if other != name}

    def refresh(self, seconds: float = 1.0) -> bool:
        """Read what is new, newest first, for `seconds` at most and one file at least; whether anything changed."""
        if not self._files and not self.broken:
            self.source = source_of(self.run_dir, trust=self._trust)
        before, end = self._files, monotonic() + seconds
        names = self.source.files()
        self.num_files = len(names)
        broken = {name: why for name, why in self.broken.items() if name in names and self._is_as_it_was(name)}
        files = {name: before[name] for name in names if name in before}
        for name in sorted(set(names) - before.keys() - broken.keys(), reverse=True):
            stamp = self.source.stamp(name)
            try:
                files[name] = self.source.entries(name)
            except LedgerError as error:
                if name in self.source.files():
                    broken[name], self._stamps[name] = error, stamp
            if monotonic() > end:
                break
        self.broken = broken
        changed = files.keys() != before.keys()
        if changed:
            self._files = files
        return changed

    def _is_as_it_was(self, name: str) -> bool:
        return self.source.stamp(name) == self._stamps[name]

    @property
    def entries(self) -> list[Entry]:
        """In the order of pages: newest step first, the responses to a prompt together."""
        files, made = self._sorted
        if files is not self._files:
            files = self._files
            everything = [entry for entries in files.values() for entry in entries]
            made = sorted(everything, key=lambda entry: (-entry.step, entry.prompt_id, entry.index))
            self._sorted = files, made
        return made

    def files(self) -> dict[str, list[Entry]]:
        """What has been read, by file."""
        return self._files

    def of_file(self, name: str) -> list[Entry]:
        """In the order of the file; empty where it is gone."""
        return self._files.get(name, [])

    def find(self, step: int, prompt_id: str, index: int) -> Entry | None:
        key = (step, prompt_id, index)
        return next((entry for entry in self.entries if entry.key == key), None)
