"""A document on its way from a raw file to shards, and the account of what did not make it. Imports no JAX.

```
find_files -> cut -> read_part, per slice: RawDocument ... -> filters -> deduplication -> tokens
                                         \\-> Account: dropped by rule, faults by reason, with examples
```
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jaxlm.types import UserError

MAX_EXAMPLES = 5
"""Of each reason, in a unit's account and in a report."""


@dataclass(slots=True)
class RawDocument:
    """The text of one page, article, book or record, and where it comes from."""

    text: str
    id: str
    """Unique within its source, and the same whenever the file is read: `<urn:uuid:...>`, `enwiki:12`, `pg1342.txt#3`."""
    file: str
    offset: int
    """Of its first byte in the file as it lies there (of its compressed member, where it has one of its own; of the
    decompressed text otherwise)."""
    num_bytes: int
    """That it takes there."""
    url: str | None = None
    date: str | None = None
    """ISO 8601, as far as it is known."""
    licence: str | None = None
    """As the file states it."""
    title: str | None = None
    language: str | None = None
    """ISO 639 code, where the source says so; filters fill it in otherwise."""
    score: float | None = None
    """Of a list of links: how many readers liked it."""
    author: str | None = None
    """Of a book, as its file states it."""


@dataclass
class Account:
    """What happened to documents on the way, by reason, with examples."""

    strict: bool = False
    """Whether a fault is an error."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Documents left out by a rule: `redirect`, `not_html`, `gopher_short_doc`."""
    changed: Counter[str] = field(default_factory=Counter)
    """Documents whose text was altered by a rule: `email`, `crlf`."""
    faults: Counter[str] = field(default_factory=Counter)
    """What could not be read and was skipped: `truncated_gzip`, `broken_xml`."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: str = "") -> None:
        """Counts a document that a rule leaves out.

        Args:
          example: what to show of it: its place, or the start of its text.
        """
        self.dropped[reason] += 1
        self._keep(reason, example)

    def fault(self, reason: str, file: str, place: str, detail: str) -> None:
        """Counts something that is damaged; in strict mode a UserError.

        Args:
          reason: one of a reader's few, in snake case.
          place: of what is skipped, in words: "offset 1,234", "line 7", "page 'April'".
          detail: what is wrong with it.
        """
        where = f"{file}, {place}"
        if self.strict:
            raise UserError(
                f"{where}: {detail} ({reason}). Mend or remove it, or build with strict=False: it is skipped "
                "and counted."
            )
        self.faults[reason] += 1
        self._keep(reason, f"{where}: {detail}")

    def _keep(self, reason: str, example: str) -> None:
        kept = self.examples.setdefault(reason, [])
        if example and len(kept) < MAX_EXAMPLES:
            kept.append(example[:300])

    def add(self, other: Account) -> None:
        """Adds the counts of another part of the input."""
        for name in ("dropped", "changed", "faults"):
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            for example in examples:
                self._keep(reason, example)

    def to_json(self) -> dict[str, Any]:
        """For the file of a work unit."""
        counts = {
            name: dict(sorted(getattr(self, name).items())) for name in ("dropped", "changed", "faults")
        }
        return {**counts, "examples": dict(sorted(self.examples.items()))}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Account:
        """The inverse of `to_json`."""
        return Account(
            dropped=Counter(value["dropped"]),
            changed=Counter(value["changed"]),
            faults=Counter(value["faults"]),
            examples={reason: list(examples) for reason, examples in value["examples"].items()},
        )
