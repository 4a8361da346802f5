"""The plan of a chaos, from its seed: which starts, on which processes and devices, what hits them, what is damaged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from chaos_runs import Layout
from damages import DAMAGES
from faults import ALONE, ON_SMALL_DISK, SEVERAL, Stroke

EXACT_LAYOUTS = (Layout(1, 8), Layout(2, 4, "data=2"))
ELASTIC_LAYOUTS = (
    Layout(1, 8), Layout(2, 4), Layout(4, 2), Layout(1, 4), Layout(1, 8, "fsdp=4 tensor=2"), Layout(2, 2, "data=2"),
    Layout(2, 4, "data=4 tensor=2"), Layout(1, 1), Layout(8, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """One planned start: on which layout, what hits it, what is harmed once it has ended."""

    layout: Layout
    strokes: tuple[Stroke, ...]
    damages: tuple[str, ...]

    @property
    def num_faults(self) -> int:
        return len(self.strokes) + len(self.damages)


@dataclass
class Suite:
    """Starts whose runs are compared with one undisturbed run."""

    name: str
    exact: bool
    reference: Layout
    starts: list[Start] = field(default_factory=list)

    @property
    def num_faults(self) -> int:
        return sum(start.num_faults for start in self.starts)


def deal(deck: Sequence, rng: Random) -> Iterator:
    """Cards in random order; none comes again before all have come."""
    while True:
        cards = list(deck)
        rng.shuffle(cards)
        yield from cards


def make_plan(num_faults: int, seed: int, *, small_disk: bool) -> list[Suite]:
    """Three quarters of the faults on one layout (most of them on one process), a quarter on changing ones."""
    rng = Random(seed)
    alone = deal(ALONE + (ON_SMALL_DISK if small_disk else []), rng)
    several, damages = deal(SEVERAL, rng), deal(sorted(DAMAGES), rng)
    first, second = EXACT_LAYOUTS
    shares = ((Suite(f"exact {first}", True, first), 0.62), (Suite(f"exact {second}", True, second), 0.13),
              (Suite("elastic", False, first), 0.25))  # fmt: skip
    layouts = deal(ELASTIC_LAYOUTS[:-1], rng)
    left = num_faults
    for suite, share in shares:
        wanted = left if suite is shares[-1][0] else round(num_faults * share)
        left -= wanted
        while suite.num_faults < wanted:
            layout = suite.reference if suite.exact else next(layouts)
            cards = several if layout.num_processes > 1 else alone
            strokes = [next(cards)]
            while strokes[-1].name in LASTING:
                strokes.append(next(cards))
            room = wanted - suite.num_faults - len(strokes)
            names = [next(damages) for _ in range(min(max(room, 0), rng.choice([0, 1, 1, 2])))]
            suite.starts.append(Start(layout, tuple(strokes[: room + len(strokes)]), tuple(names)))
    return [suite for suite, _ in shares if suite.starts]


LASTING = ("SIGSTOP, then SIGCONT", "second run in the workdir")
"""After these a launch goes on."""
