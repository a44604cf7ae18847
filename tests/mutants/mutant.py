"""What a mutant is. The tables are in the modules that `table.py` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Edit(NamedTuple):
    """Replace `old`, which occurs once in `file`."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises `ValueError` when its text is another than the table says."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has this {text.count(self.old)} times, not once: {self.old!r}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule switched off. `tests` are those that should notice, the likeliest first."""

    name: str
    protects: str
    edits: Sequence[Edit]
    tests: Sequence[str]
    second: bool = False  # another line still keeps every 200 true
    own: bool = False  # its tests must notice by themselves: they are what is on trial, and all others do not count
