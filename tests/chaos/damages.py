"""Damage that the chaos driver does to what stopped runs left: checkpoints, logs, locks and the cache."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from chaos_runs import Site

from jaxlm import checkpoint_integrity as integrity
from jaxlm.report.events import EVENTS


class Wound(NamedTuple):
    """One harmed file."""

    words: str
    named: str
    """What a refusal must name."""
    mend: Callable[[], None]
    """What a person would do whom an error tells that this is damaged."""
    must_be_told: bool = False
    """Whether the next start that gets to its first step has to have named it."""
    path: Path | None = None
    """Without which the wound is gone: another fault took it away."""


Damage = Callable[[Site, Path, Random], Wound | None]


def remove(path: Path) -> None:
    """File or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flip(path: Path, rng: Random) -> str:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    offset, bit = rng.randrange(len(content)), rng.randrange(8)
    content[offset] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {offset:,} of {len(content):,}"


def truncate(path: Path, rng: Random) -> str:
    """Cuts a file off somewhere."""
    size = path.stat().st_size
    left = rng.randrange(size)
    os.truncate(path, left)
    return f"{left:,} of {size:,} bytes left"


def delete(path: Path, rng: Random) -> str:
    """Removes a file."""
    path.unlink()
    return "gone"


Harm = Callable[[Path, Random], str]

# Checkpoints.


def in_latest_step(harm: Harm) -> Damage:
    """One file of the latest of at least two steps."""

    def damage(site: Site, workdir: Path, rng: Random) -> Wound | None:
        steps = integrity.list_steps(workdir / "checkpoints")
        if len(steps) < 2:
            return None
        folder = workdir / "checkpoints" / str(steps[-1])
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        if not files:
            return None
        path = rng.choice(files)
        told = path.name not in integrity.UNSEALED
        words = f"{path.relative_to(workdir)}: {harm(path, rng)}"
        return Wound(words, f"Checkpoint {steps[-1]} in", lambda: remove(folder), told, folder)

    return damage


def latest_step_gone(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """As if it had never been saved."""
    steps = integrity.list_steps(workdir / "checkpoints")
    if len(steps) < 2:
        return None
    shutil.rmtree(workdir / "checkpoints" / str(steps[-1]))
    return Wound(f"checkpoints/{steps[-1]}", str(steps[-1]), lambda: None)


def unfinished_step(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """A save that a power cut interrupted: a copy of a step with its temporary name, half its files missing."""
    directory = workdir / "checkpoints"
    steps = integrity.list_steps(directory)
    if not steps:
        return None
    target = directory / f"{steps[-1] + rng.randint(1, 8)}{integrity.UNFINISHED}"
    if target.exists():
        return None
    shutil.copytree(directory / str(steps[-1]), target)
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        if rng.random() < 0.5:
            path.unlink()
    return Wound(str(target.relative_to(workdir)), target.name, lambda: remove(target), path=target)


def empty_step(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """A folder with the name of a step and nothing in it."""
    directory = workdir / "checkpoints"
    steps = integrity.list_steps(directory)
    if not steps:
        return None
    folder = directory / str(steps[-1] + 1)
    folder.mkdir()
    return Wound(
        f"checkpoints/{folder.name}", f"Checkpoint {folder.name} in", lambda: remove(folder), True, folder
    )


def marks(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """What stands beside the steps about what followed them."""
    path = workdir / "checkpoints" / integrity.MARKS
    if not path.parent.exists():
        return None
    path.write_bytes(rng.choice([b"", b'{"4": {"eva', b"[1, 2]", rng.randbytes(40)]))
    return Wound(f"{integrity.MARKS}: {path.read_bytes()[:20]!r}", integrity.MARKS, lambda: remove(path))


# The rest of a workdir.


def torn_line(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """The event log ends in the middle of a line."""
    path = workdir / EVENTS
    if not path.exists() or not (lines := path.read_bytes().splitlines(keepends=True)):
        return None
    half = lines[-1][: rng.randrange(1, len(lines[-1]))]
    with open(path, "ab") as file:
        file.write(half)
    return Wound(f"{len(half)} bytes of a line", EVENTS, lambda: None)


def stale_lock(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """The lock of a process of another machine that is no more."""
    if not workdir.exists():
        return None
    path = workdir / "run.lock"
    path.write_text("process 1 on elsewhere\n")
    return Wound("process 1 on elsewhere", path.name, lambda: remove(path))


def config_file(harm: Harm) -> Damage:
    """config.json: mended by putting it back."""

    def damage(site: Site, workdir: Path, rng: Random) -> Wound | None:
        path = workdir / "config.json"
        if not path.exists():
            return None
        content = path.read_bytes()

        def put_back() -> None:
            path.write_bytes(content)

        return Wound(harm(path, rng), path.name, put_back)

    return damage


def write_bit(path: Path, rng: Random) -> str:
    """Takes away the right to write a file; nothing to root."""
    path.chmod(0o444)
    return "mode 0444"


def saved_tokenizer(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """The copy of the tokenizer beside the checkpoints."""
    path = workdir / "tokenizer.model"
    if not path.exists() or not path.stat().st_size:
        return None
    return Wound(f"{path.name}: {flip(path, rng)}", path.name, lambda: remove(path))


# The cache.


def in_cache(pattern: str, harm: Harm, mend: Callable[[Path], None] = remove) -> Damage:
    """One file of the cache that matches; `mend` gets its path."""

    def damage(site: Site, workdir: Path, rng: Random) -> Wound | None:
        files = sorted(p for p in site.cache.glob(pattern) if p.is_file() and p.stat().st_size)
        if not files:
            return None
        path = rng.choice(files)
        words = f"{path.relative_to(site.cache)}: {harm(path, rng)}"
        return Wound(words, str(path.parent), lambda: mend(path))

    return damage


def remove_folder(path: Path) -> None:
    """Of a file: the errors about a corpus say to delete the folder."""
    shutil.rmtree(path.parent, ignore_errors=True)


def cold_compile_cache(site: Site, workdir: Path, rng: Random) -> Wound | None:
    """Nothing is compiled any more."""
    folder = site.cache / "compiled"
    if not folder.exists():
        return None
    shutil.rmtree(folder)
    return Wound("compiled/", "compiled", lambda: None)


SHARD, OFFSETS, MANIFEST = "corpora/*/*.arrayrecord", "corpora/*/*.offsets.npy", "corpora/*/manifest.json"
DAMAGES: dict[str, Damage] = {
    "checkpoint: a bit flipped": in_latest_step(flip),
    "checkpoint: a file truncated": in_latest_step(truncate),
    "checkpoint: a file deleted": in_latest_step(delete),
    "checkpoint: latest step deleted": latest_step_gone,
    "checkpoint: unfinished folder": unfinished_step,
    "checkpoint: empty folder": empty_step,
    "marks.json corrupted": marks,
    "event log: torn line": torn_line,
    "stale lock": stale_lock,
    "config.json: a bit flipped": config_file(flip),
    "config.json: truncated": config_file(truncate),
    "config.json: not writable": config_file(write_bit),
    "tokenizer of the run: a bit flipped": saved_tokenizer,
    "corpus shard: a bit flipped": in_cache(SHARD, flip, remove_folder),
    "corpus shard: truncated": in_cache(SHARD, truncate, remove_folder),
    "corpus shard: deleted": in_cache(SHARD, delete, remove_folder),
    "corpus offsets: a bit flipped": in_cache(OFFSETS, flip, remove_folder),
    "corpus offsets: truncated": in_cache(OFFSETS, truncate, remove_folder),
    "corpus manifest: a bit flipped": in_cache(MANIFEST, flip, remove_folder),
    "packing index: a bit flipped": in_cache("packing/*/*", flip, remove_folder),
    "packing index: truncated": in_cache("packing/*/*", truncate, remove_folder),
    "cached tokenizer: a bit flipped": in_cache("tokenizers/*.model", flip),
    "cached tokenizer: truncated": in_cache("tokenizers/*.model", truncate),
    "fingerprints: truncated": in_cache("fingerprints.json", truncate),
    "compiled step: a bit flipped": in_cache("compiled/*-cache", flip),
    "compiled step: truncated": in_cache("compiled/*-cache", truncate),
    "compiled steps deleted": cold_compile_cache,
}
