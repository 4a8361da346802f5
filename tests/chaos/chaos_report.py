"""What a chaos did and saw, as Markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Record:
    """What was injected, when in fact, and what happened."""

    number: int
    suite: str
    layout: str
    kind: str
    hit: str
    outcome: str
    seconds: float


def table(records: Sequence[Record]) -> str:
    """Markdown: kinds by count and outcome."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(record.kind.partition(" / ")[0], []).append(record)
    lines = ["| fault | times | hit while | what happened |", "|---|---|---|---|"]
    for kind in sorted(kinds):
        same = kinds[kind]
        phases = Counter(r.hit.partition(" (")[0].partition(",")[0] for r in same if " / " in r.kind)
        ends = Counter(r.outcome.partition(",")[0] for r in same)
        hit, ended = (", ".join(f"{name} {n}" for name, n in c.most_common()) for c in (phases, ends))
        lines.append(f"| {kind} | {len(same)} | {hit or 'stopped'} | {ended} |")
    return "\n".join(lines)


def listing(records: Sequence[Record]) -> str:
    """Markdown: every fault."""
    lines = ["| no. | suite | layout | fault | hit | outcome | seconds |", "|---|---|---|---|---|---|---|"]
    for r in records:
        seconds = f"{r.seconds:.1f}" if r.seconds else ""
        lines.append(
            f"| {r.number} | {r.suite} | {r.layout} | {r.kind} | {r.hit} | {r.outcome} | {seconds} |"
        )
    return "\n".join(lines)
