"""Chaos: real training runs, disturbed by a plan that follows from a seed, must end as the undisturbed one does.

    python tests/chaos/driver.py --faults=100 --seed=0 --out=/tmp/chaos

Prints the plan, then a line for each fault, then the table, which is also written to OUT/report.md. Exit code 1 if
anything differed: its workdir and all that was printed are kept in OUT. `--seed` repeats a plan; a fault's own random
numbers follow from the seed and its number, so that one that came too late changes none of the others.

Two suites. `exact` keeps one layout of processes and devices: every step's batch hash, loss and gradient norm, every
evaluation and the final state (weights, optimizer) must be the same bits. `elastic` starts on another layout each time:
batch hashes must be equal, losses agree to 1e-5, final weights be close.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (0, 1, 2)]

from chaos_plan import Start, Suite, make_plan  # noqa: E402
from chaos_report import Record, listing, table  # noqa: E402
from chaos_runs import Launch, Layout, Site  # noqa: E402
from damages import DAMAGES, Wound  # noqa: E402
from faults import ABORTED, BALLAST, MOMENTS, OTHERS_END_S, Blow, Stroke  # noqa: E402
from verdict import Differences, Outcome, outcome  # noqa: E402

NUM_STEPS, WORDS_BYTES, DISK_MB = 80, 5_000_000, 32
STARTS_PER_RUN = 10
PATIENCE = 4


class Chaos:
    """Carries out a plan.

    Args:
      say: gets a line for each fault.
    """

    def __init__(self, site: Site, seed: int, say=print):
        self.site, self.seed, self._say = site, seed, say
        self.records: list[Record] = []
        self.problems: list[str] = []
        self.differences: dict[str, Differences] = {}
        self.num_launches = self.num_runs = 0
        self._references: dict[Layout, Outcome] = {}
        self._wounds: list[tuple[Wound, Record]] = []
        self.launch: Launch | None = None
        self._postponed: list[str] = []
        self._workdir: Path | None = None

    # Undisturbed.

    def reference(self, layout: Layout) -> Outcome:
        """The undisturbed run on a layout."""
        if layout not in self._references:
            workdir = self.site.folder / "reference" / str(layout).replace(" ", "-")
            launch = self._launch(workdir, layout)
            codes = launch.wait()
            if set(codes) != {0}:
                raise SystemExit(
                    f"The undisturbed run on {layout} ended with {codes}:\n{launch.printed()[-3000:]}"
                )
            self._references[layout] = outcome(workdir, self.site.num_steps)
            self._say(f"undisturbed run on {layout}: {time.monotonic() - launch.began:.1f} s")
        return self._references[layout]

    def _launch(self, workdir: Path, layout: Layout) -> Launch:
        self.num_launches += 1
        self.launch = Launch(self.site, workdir, layout)
        return self.launch

    # Disturbed.

    def carry_out(self, suite: Suite) -> None:
        """All starts of a suite, over as many runs as they take."""
        self._suite = suite
        self._differences = Differences(self.reference(suite.reference), exact=suite.exact)
        self.differences[suite.name] = self._differences
        num_starts = 0
        for start in suite.starts:
            self.start(start)
            num_starts += 1
            if num_starts % STARTS_PER_RUN == 0:
                self.finish(start.layout)
        if self._workdir is not None:
            self.finish(suite.starts[-1].layout)

    def start(self, start: Start) -> None:
        """One start with its strokes, again where a run was finished too soon or refused, then its damages."""
        strokes = list(start.strokes)
        for _ in range(PATIENCE):
            strokes = self._attempt(start.layout, strokes)
            if not strokes:
                break
        else:
            self._problem(f"{strokes[0]}: its moment did not come in {PATIENCE} starts")
        names, self._postponed = [*self._postponed, *start.damages], []
        for name in names:
            self._damage(name, start.layout)

    def _attempt(self, layout: Layout, strokes: list[Stroke]) -> list[Stroke]:
        """Returns the strokes that did not hit."""
        if strokes and strokes[0].moment == "corpus build":
            self.site.forget_corpora()
            self._keep_wounds(lambda wound: not self._in_cache(wound))
        self._keep_wounds(lambda wound: wound.path is None or wound.path.exists())
        workdir = self._workdir = self._workdir or self._new_run()
        launch = self._launch(workdir, layout)
        blows: list[tuple[Blow, Record]] = []
        for stroke in strokes:
            rng = self._rng()
            if not MOMENTS[stroke.moment](launch, rng):
                break
            hit = launch.phase()
            if launch.steps():
                hit += f", step {launch.steps()[-1]}"
            blow = stroke.strike(launch, rng)
            record = self._record(str(stroke), f"{hit}{f' ({blow.words})' if blow.words else ''}", layout)
            blows.append((blow, record))
            if blow.ends:
                break
            record.outcome = "went on"
            if blow.words.startswith("NOT"):
                self._problem(f"fault {record.number}, {record.kind}: {blow.words}", record)
        struck = time.monotonic()
        codes = launch.wait(OTHERS_END_S)
        if blows and blows[-1][0].ends:
            blows[-1][1].seconds = time.monotonic() - struck
        with contextlib.suppress(FileNotFoundError):
            (workdir.parent / BALLAST).unlink()
        self._after(launch, codes, blows[-1] if blows else None)
        return strokes[len(blows) :]

    def _after(self, launch: Launch, codes: list[int | None], last: tuple[Blow, Record] | None) -> None:
        """Judges how a launch ended, and what it wrote."""
        blow, record = last or (None, None)
        text = launch.printed()
        for event in launch.events:
            if event["event"] in ("warning", "failed"):
                text += f"\n{event}"
        refused = self._tell_wounds(launch, codes, text)
        problems = self._differences.of_events(launch.events)[:5]
        if TRACEBACK in text and not _is_of_python_itself(text, record):
            problems.append(f"a traceback: {text[text.index(TRACEBACK) :][:3000]}")
        if left := launch.left_running():
            problems.append(f"still running: {left}")
        problems += _wrong_codes(launch, codes, blow, refused)
        if record is not None and blow.ends:
            saved = launch.steps_on_disk()[-1:]
            record.outcome = f"ended with {' '.join(sorted({str(code) for code in codes}))}"
            record.outcome += f", step {saved[0]} saved" if saved else ", nothing saved"
        label = (
            f"fault {record.number}, {record.kind} at {record.hit}" if record else "a start that nothing hit"
        )
        for problem in problems:
            self._problem(f"{label}: {problem}", record)
        if problems:
            self._give_up(launch)
        elif set(codes) == {0}:
            self._judge()

    def _tell_wounds(self, launch: Launch, codes: Sequence[int | None], text: str) -> bool:
        """What became of earlier damage; mends that for which the start was refused. Returns whether one was."""
        refused, left = False, []
        errors = "".join(line for line in text.splitlines(keepends=True) if "jaxlm: error" in line)
        for wound, record in reversed(self._wounds):  # so that the oldest copy of a file is put back last
            if 2 in codes and wound.named in errors:
                wound.mend()
                record.outcome, refused = "refused by name; mended", True
            elif wound.named in text:
                record.outcome = "named; went on"
            else:
                if launch.steps():
                    record.outcome = "no difference"
                    if wound.must_be_told:
                        self._problem(
                            f"fault {record.number}, {record.kind}: {wound.words} was not told of", record
                        )
                        continue
                left.append((wound, record))  # what is read later, at an evaluation, is noticed later
        self._wounds = left[::-1]
        return refused

    def finish(self, layout: Layout) -> None:
        """Lets the run of now go on to its end, undisturbed."""
        for _ in range(PATIENCE):
            if self._workdir is None:
                return
            self._attempt(layout, [])
        self._problem("the run was refused again and again")
        self._workdir = None

    def _judge(self) -> None:
        """Compares a finished run; the next start begins another."""
        assert self._workdir is not None
        self.num_runs += 1
        workdir, self._workdir = self._workdir, None
        found = self._differences.of_end(workdir, self.site)
        for problem in found:
            self._problem(f"{workdir.name}, finished: {problem}")
        self._say(f"     {workdir.name} finished: {'DIFFERS' if found else 'as the undisturbed run'}")
        self._put_away(workdir, keep=bool(found))

    def _new_run(self) -> Path:
        self._keep_wounds(self._in_cache)
        return self.site.new_workdir()

    def _in_cache(self, wound: Wound) -> bool:
        return wound.named.startswith(str(self.site.cache))

    def _keep_wounds(self, wanted: Callable[[Wound], bool]) -> None:
        for wound, record in self._wounds:
            if not wanted(wound):
                record.outcome = record.outcome or "overtaken by another fault"
        self._wounds = [(wound, record) for wound, record in self._wounds if wanted(wound)]

    def _give_up(self, launch: Launch) -> None:
        """After a failure: what follows should not suffer from it."""
        self._put_away(launch.workdir, keep=True)
        self._workdir = None
        self._wounds = []
        self.site.forget_corpora()
        shutil.rmtree(self.site.cache / "compiled", ignore_errors=True)

    def _put_away(self, workdir: Path, *, keep: bool) -> None:
        if keep and workdir.exists():
            shutil.copytree(workdir, self.site.folder / "failed" / workdir.name, dirs_exist_ok=True)
        shutil.rmtree(workdir, ignore_errors=True)

    def _damage(self, name: str, layout: Layout) -> None:
        workdir = self._workdir
        wound = DAMAGES[name](self.site, workdir, self._rng()) if workdir is not None else None
        if wound is None:
            self._postponed.append(name)  # there is nothing to harm as yet
            return
        self._wounds.append((wound, self._record(name, wound.words, layout)))

    def _rng(self) -> Random:
        return Random(f"{self.seed}/{len(self.records)}")

    def _record(self, kind: str, hit: str, layout: Layout) -> Record:
        record = Record(len(self.records) + 1, self._suite.name, str(layout), kind, hit, "", 0.0)
        self.records.append(record)
        self._say(f"{record.number:4d} {record.layout:<12} {kind}: {hit}")
        return record

    def _problem(self, text: str, record: Record | None = None) -> None:
        self.problems.append(text)
        if record is not None:
            record.outcome += " FAILED"
        self._say(f"     FAILED: {text}")


def _wrong_codes(launch: Launch, codes: Sequence[int | None], blow: Blow | None, refused: bool) -> list[str]:
    """Exit codes that were not to come, or not without a word, or not without a save."""
    found = []
    allowed = blow.codes if blow is not None and blow.ends else [{0}] * len(codes)
    for index, (code, good) in enumerate(zip(codes, allowed)):
        errors = launch.errors(index)
        if code not in (good | {2} if refused else good):
            said = (errors or launch.output(index))[-1500:]
            found.append(f"process {index} ended with {code}, not {sorted(good)}: {said}")
        elif code in (2, 75, ABORTED) and not refused and not any(word in errors for word in blow.says):
            found.append(f"process {index} did not say why it ended: {errors[-1500:]}")
    promised = blow is not None and blow.saves and set(codes) & {143, 130}
    if promised and launch.steps() and launch.steps()[-1] not in (there := launch.steps_on_disk()):
        found.append(f"step {launch.steps()[-1]} was not saved before the end; {there} are")
    return found


TRACEBACK = "Traceback (most recent call last)"


def _is_of_python_itself(text: str, record: Record | None) -> bool:
    """Whether Ctrl-C came before Python had come to any line of ours."""
    interrupted = (
        record is not None and record.kind.startswith("SIGINT") and record.hit.startswith("start-up")
    )
    return interrupted and "jaxlm" not in text[text.index(TRACEBACK) :]


def summary(chaos: Chaos, seconds: float) -> str:
    """What was done and what came of it, in words."""
    lines = [
        f"{len(chaos.records)} faults in {chaos.num_launches} starts of {chaos.num_runs} runs; seed {chaos.seed}, "
        f"{chaos.site.num_steps} steps a run, {seconds / 60:.1f} minutes."
    ]
    for name, differences in chaos.differences.items():
        if differences.exact:
            lines.append(f"{name}: compared bit for bit.")
        else:
            lines.append(
                f"{name}: losses at most {differences.loss_rtol:.1e} apart (relative), final weights at most "
                f"{differences.params_atol:.1e} (absolute); batch hashes compared bit for bit."
            )
    return "\n".join(
        [*lines, *(f"FAILED: {problem}" for problem in chaos.problems), "" if chaos.problems else "Passed."]
    )


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of DISK_MB for the workdirs; None where this machine does not let us mount one."""
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def run(
    folder: Path,
    plan: Sequence[Suite],
    seed: int,
    *,
    disk: Path | None = None,
    num_steps: int = NUM_STEPS,
    words_bytes: int = WORDS_BYTES,
    say=print,
) -> Chaos:
    """Carries out a plan in a folder, and writes the report there."""
    began = time.monotonic()
    for suite in plan:
        for start in suite.starts:
            say(
                f"plan: {suite.name}: {start.layout}: {'; '.join([*map(str, start.strokes), *start.damages])}"
            )
    chaos = Chaos(Site(folder, num_steps=num_steps, words_bytes=words_bytes, disk=disk), seed, say)
    try:
        for suite in plan:
            chaos.carry_out(suite)
    except BaseException as error:
        chaos.problems.append(f"the chaos itself ended early: {error!r}")
        raise
    finally:
        if chaos.launch is not None:  # of a chaos that ended early
            chaos.launch.signal(signal.SIGKILL)
        for record in chaos.records:
            record.outcome = record.outcome or "not read any more"
        said = summary(chaos, time.monotonic() - began)
        (folder / "report.md").write_text(f"{said}\n\n{table(chaos.records)}\n\n{listing(chaos.records)}\n")
        say(f"{table(chaos.records)}\n\n{said}")
    return chaos


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--suite", default="", help="only suites whose names begin so: exact,elastic")
    args = parser.parse_args(argv)
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out={args.out} is not empty")
    args.out.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(line_buffering=True)
    # What a shell starts in the background ignores SIGINT, and so would every process of a run until it is set up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = args.out.resolve()
    with small_disk(folder) as disk:
        plan = make_plan(args.faults, args.seed, small_disk=disk is not None)
        plan = [suite for suite in plan if suite.name.startswith(tuple(args.suite.split(",")))]
        return 1 if run(folder, plan, args.seed, disk=disk).problems else 0


if __name__ == "__main__":
    sys.exit(main())
