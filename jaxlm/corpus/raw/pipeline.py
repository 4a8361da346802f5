"""`jaxlm corpus build --config`: the stages from raw files to corpora, and what is kept between two builds.

```
read:<source>   raw files -> text -> filters -> documents and hashes          a task per unit of input
compare         equal hashes                                                  a task per column
choose          groups of copies; which documents go                          one task
tokenizer       trained on what stays, unless one is named                    one task
tokenise        shards of train and eval                                      a task per unit
finish          OUTPUT/<source>, corpus.json, the report                      one task
```
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any

from datatrove.pipeline.base import PipelineStep

from jaxlm.config import to_json
from jaxlm.config_flags import CONFIG_FILE
from jaxlm.corpus.build import check_apart
from jaxlm.corpus.inputs import find_inputs
from jaxlm.corpus.raw import report
from jaxlm.corpus.raw.config import CorpusConfig, RawSourceConfig, decontamination, paths_of
from jaxlm.corpus.raw.decontaminate import DecontaminateStep, NGramIndex, build_index
from jaxlm.corpus.raw.dedup import ChooseCopies, FindPairs, dedup_folder, pairs_file
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.evaluation_sets import KINDS
from jaxlm.corpus.raw.executors import Stage, run_stages
from jaxlm.corpus.raw.files import RawFile, RawOptions, find_files
from jaxlm.corpus.raw.filter_config import FilterConfig, evaluation_sets
from jaxlm.corpus.raw.filters import build_filters
from jaxlm.corpus.raw.read import ReadUnits, WriteUnits, num_columns
from jaxlm.corpus.raw.tokens import Tokenise, TrainTokenizer, assemble, lacks_tokenizer, tokenizer_file
from jaxlm.corpus.raw.work import BUILD, RawUnit, keep_only, plan_units, result_of
from jaxlm.corpus.text import Tally
from jaxlm.data.files import exclusive, make_folder, write_atomic
from jaxlm.data.manifest import is_corpus
from jaxlm.paths import cache_root, is_local
from jaxlm.types import UserError

_LOCK = ".lock"
_PATIENCE_S = 3.0
"""After so long a build says that it waits for another one."""
_NO_QUALITY: dict[str, Any] = {
    "url": False, "url_block_list": None, "gopher_quality": False, "gopher_repetition": False, "c4": False,
    "fineweb": False,
}  # fmt: skip
"""What `sources.<name>.filter=False` makes of FilterConfig."""
_ALWAYS = ("languages", "language_threshold", "language_model", "personal_data")
"""What it leaves of it."""


def build(
    cfg: CorpusConfig,
    output: str,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Builds, or brings up to date, the corpora of a config; returns the report. None: it goes on elsewhere, on Slurm.

    Args:
      output: folder of the corpora, on a file system that all machines share.
      progress: False: no progress.
      say: takes a line about each rule that works less than fully here.

    Errors: UserError; what is finished stays, and the same call goes on with the rest.
    """
    if not output:
        raise UserError("The output is empty: give a folder.")
    if not is_local(output):
        raise UserError(
            f"{output}: raw files are built on a file system, which a bucket is not. Give a folder, and copy the "
            "folders of the sources below it to the bucket when they are done."
        )
    files = _find(cfg)
    make_folder(output)
    output = os.path.abspath(output)
    patience = threading.Timer(
        _PATIENCE_S, say, [f"{output}: another build works on this folder; this one waits."]
    )
    patience.daemon = True
    patience.start()
    with exclusive(os.path.join(output, _LOCK)):
        patience.cancel()
        _check_folder(output, cfg)
        make_folder(os.path.join(output, BUILD))
        evaluation = _evaluation_rules(cfg)
        units = {
            name: plan_units(cfg, name, found, _rules(cfg, name, evaluation))
            for name, (found, _) in files.items()
        }
        write_atomic(os.path.join(output, CONFIG_FILE), to_json(cfg).encode())
        left_out = {name: account.to_json() for name, (_, account) in files.items()}
        _say_if_kept(cfg, output, units, say)
        waves = _waves(cfg, output, units, left_out, say)
        if not run_stages(waves, cfg.executor, os.path.join(output, BUILD, "logs"), progress):
            return None
        for name in _left_behind(cfg, output):
            say(f"{output}/{name} is of no source of this config any more: remove it, if no run needs it.")
        return report.read_report(output)


def _say_if_kept(
    cfg: CorpusConfig, output: str, units: dict[str, list[RawUnit]], say: Callable[[str], None]
) -> None:
    """A line where a tokenizer that was trained on other text is used on."""
    if cfg.tokenizer.path is not None or lacks_tokenizer(output, cfg):
        return
    if any(result_of(unit.folder(output)) is None for own in units.values() for unit in own):
        path = tokenizer_file(output, cfg)
        say(
            f"The tokenizer of the first build is kept, so that its tokens are: remove {path} to train another."
        )


def _left_behind(cfg: CorpusConfig, output: str) -> list[str]:
    """Corpora of an earlier build of the folder, whose sources are gone: runs may still read them."""
    names = (name for name in os.listdir(output) if name not in cfg.sources and not name.startswith("."))
    return sorted(name for name in names if is_corpus(os.path.join(output, name)))


def _find(cfg: CorpusConfig) -> dict[str, tuple[list[RawFile], Account]]:
    """The files of each source; one error for all that are not there, before any work."""
    found, wrong = {}, []
    for name in cfg.names:
        source, account = cfg.sources[name], Account(strict=cfg.strict)
        try:
            found[name] = find_files(paths_of(cfg.root, source.path), source.format, account), account
            for path in paths_of(cfg.root, source.links or ""):
                if is_local(path) and not os.path.exists(path):
                    raise UserError(f"{path}, of sources.{name}.links, does not exist: give a list of links.")
        except UserError as error:
            wrong.append(f"sources.{name}.path: {error}")
    if wrong:
        count = f"{len(wrong)} of {len(cfg.sources)} sources cannot be read. " if len(wrong) > 1 else ""
        hint = "" if cfg.root != "." else " Paths are below config.root; --config.root=FOLDER changes it."
        raise UserError(count + " ".join(wrong) + hint)
    return found


def _check_folder(output: str, cfg: CorpusConfig) -> None:
    """UserError where the folder holds something else."""
    names = [name for name in os.listdir(output) if name != _LOCK]
    if names and not os.path.exists(os.path.join(output, BUILD)):
        raise UserError(
            f"{output} is not empty ({names[0]} is in it) and was not made by `jaxlm corpus build --config`: choose "
            "another --output."
        )
    for source in cfg.sources.values():
        check_apart(paths_of(cfg.root, source.path), output)


def _options(cfg: CorpusConfig, source: RawSourceConfig) -> RawOptions:
    return RawOptions(
        extractor=cfg.extractor,
        document=source.document,
        disambiguation=source.disambiguation,
        text_key=source.text_key,
        score_key=source.score_key,
        min_score=source.min_score,
        max_document_bytes=cfg.max_document_bytes,
    )


def _filters(cfg: CorpusConfig, name: str) -> FilterConfig:
    """Those that apply to a source: a change of the others does not concern it."""
    if cfg.sources[name].filter:
        return cfg.filters
    return dataclasses.replace(
        FilterConfig(), **_NO_QUALITY, **{key: getattr(cfg.filters, key) for key in _ALWAYS}
    )


def _rules(cfg: CorpusConfig, name: str, evaluation: list[Any]) -> Any:
    """All that decides what a slice of a source becomes.

    Args:
      evaluation: of `_evaluation_rules`, the same for all sources.
    """
    source = dataclasses.asdict(cfg.sources[name])
    for key in ("path", "weight_tokens", "order"):
        del source[key]
    links = [_stamp(path) for path in paths_of(cfg.root, cfg.sources[name].links or "")]
    dedup = dataclasses.asdict(cfg.dedup)
    for key in ("across_sources", "memory_gib"):
        del dedup[key]
    filters = _filters(cfg, name)
    lists = [_stamp(path) for path in (filters.language_model, filters.url_block_list) if path]
    return [
        source, links, dataclasses.asdict(filters), lists, cfg.extractor, cfg.max_document_bytes, cfg.strict,
        *evaluation, dedup,
    ]  # fmt: skip


def _evaluation_rules(cfg: CorpusConfig) -> list[Any]:
    """What the evaluation sets are, and how they are compared."""
    against = decontamination(cfg)
    sets = [
        [name, path, *map(_stamp, _files_of(path))]
        for name, path in evaluation_sets(against.evaluation).items()
    ]
    return [dataclasses.asdict(against), sets]


def _files_of(path: str) -> list[str]:
    """The files of an evaluation set."""
    return [file.path for file in find_inputs([path], Tally(), KINDS)]


def _stamp(path: str) -> list[Any]:
    """Changes when a file, or one below a folder, may have changed."""
    if not is_local(path):
        return [path]
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(
            f"{path}, which the config names, cannot be read ({error.strerror}): give a file that is there."
        ) from None
    if stat.S_ISDIR(status.st_mode):
        return [
            os.path.basename(path),
            *(_stamp(os.path.join(path, name)) for name in sorted(os.listdir(path))),
        ]
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def _waves(
    cfg: CorpusConfig,
    output: str,
    units: dict[str, list[RawUnit]],
    left_out: dict[str, Any],
    say: Callable[[str], None],
) -> list[list[Stage]]:
    every = [unit for name in cfg.names for unit in units[name]]
    dedup = dedup_folder(output, every, cfg.dedup)
    reading = []
    index = build_index(decontamination(cfg)) if cfg.decontaminate.evaluation else None
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    for name, own in units.items():
        steps = _reading_steps(cfg, output, name, own, index, say_once)
        reading.append(Stage(f"read:{name}", steps, [unit.num_bytes for unit in own], _undone(output, own)))
    tokenise = Tokenise(every, output, dedup, cfg)
    finish = Finish(tokenise, left_out)
    total = sum(unit.num_bytes for unit in every)
    columns = num_columns(cfg.dedup)

    def not_compared() -> list[int]:
        if result_of(dedup) is not None:
            return []
        return [column for column in range(columns) if not os.path.exists(pairs_file(dedup, column))]

    def not_chosen() -> list[int]:
        return [0] if result_of(dedup) is None else []

    def no_tokenizer() -> list[int]:
        return [0] if lacks_tokenizer(output, cfg) else []

    def not_tokenised() -> list[int]:
        return [rank for rank, unit in enumerate(every) if result_of(tokenise.folder(unit)) is None]

    return [
        reading,
        [Stage("compare", [FindPairs(every, output, cfg.dedup)], [total] * columns, not_compared)],
        [Stage("choose", [ChooseCopies(every, output, cfg.dedup)], [total], not_chosen)],
        [Stage("tokenizer", [TrainTokenizer(every, output, dedup, cfg)], [total], no_tokenizer)],
        [Stage("tokenise", [tokenise], [unit.num_bytes for unit in every], not_tokenised)],
        [Stage("finish", [finish], [total], lambda: [0])],
    ]


def _undone(output: str, units: Sequence[RawUnit]) -> Callable[[], list[int]]:
    return lambda: [r for r, unit in enumerate(units) if result_of(unit.folder(output)) is None]


def _reading_steps(
    cfg: CorpusConfig,
    output: str,
    name: str,
    units: Sequence[RawUnit],
    index: NGramIndex | None,
    say: Callable[[str], None],
) -> list[Any]:
    source = cfg.sources[name]
    account = Account(strict=cfg.strict)
    links = tuple(paths_of(cfg.root, source.links or ""))
    filters = _filters(cfg, name)
    steps: list[Any] = [ReadUnits(units, output, _options(cfg, source), account, links)]
    steps += build_filters(filters, account, cache_dir=cache_root(), say=say)
    if index is not None:
        steps.append(DecontaminateStep(decontamination(cfg), index, account))
    steps.append(WriteUnits(units, output, cfg.dedup, account))
    return steps


class Finish(PipelineStep):
    """One task: corpora, report, and no more than is needed for the next build."""

    type = "WRITER"
    name = "corpora"

    def __init__(self, tokenise: Tokenise, left_out: dict[str, Any]):
        super().__init__()
        self.tokenise, self.left_out = tokenise, left_out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes them, and removes what is of no use to the next build."""
        step = self.tokenise
        manifests = assemble(step)
        found = report.make_report(step, manifests, self.left_out)
        report.write_report(step.output, found)
        sources = {
            name: {"path": name, "weight_tokens": source.weight_tokens}
            for name, source in step.cfg.sources.items()
        }
        corpus = {"sources": sources, "budget_tokens": step.cfg.budget_tokens}
        write_atomic(os.path.join(step.output, "corpus.json"), json.dumps(corpus, indent=1).encode())
        keep = {os.path.basename(unit.folder(step.output)) for unit in step.units}
        keep_only(os.path.join(step.output, BUILD, "read"), keep)
        keep_only(os.path.join(step.output, BUILD, "dedup"), {os.path.basename(step.dedup)})
