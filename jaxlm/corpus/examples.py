"""From files of records to examples, built into the cache once.

```
records.py -> columns.py -> data/chat.py or the tokenizer -> truncated -> data/examples.py: ExampleStore
```

The cache is keyed by content: files, tokenizer, template and every setting that decides about an example.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from jaxlm.corpus.columns import ColumnMap, Dropped, dialogue, labelled, open_columns
from jaxlm.corpus.growing_array import GrowingArray
from jaxlm.corpus.inputs import InputFile, check_unchanged
from jaxlm.corpus.records import Record, find_records, read_records
from jaxlm.corpus.sources import remembered_fingerprint
from jaxlm.corpus.split import hash_of, plan_split
from jaxlm.corpus.text import Tally
from jaxlm.data.chat import ChatTemplate, Message
from jaxlm.data.checked_array import file_checksums
from jaxlm.data.checksums import npy, sealed, sha256
from jaxlm.data.config import ClassifyConfig, DataConfig, InstructConfig, SourceConfig
from jaxlm.data.examples import CHECKSUMS, EXAMPLES, FORMAT, DamagedExamples, ExampleStore, read_manifest
from jaxlm.data.files import disk_error, exclusive, make_folder, write_atomic
from jaxlm.data.manifest import check_tokenizer, token_dtype
from jaxlm.data.notices import Notices
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.paths import cache_root, is_local
from jaxlm.types import UserError

VERSION = 1
"""Goes up when the same records and settings give other examples."""
SPLITS = ("train", "eval")
_BATCH = 1024


class Sections(Protocol):
    """The sections of a run's config that decide about examples; a RunConfig has them."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def instruct(self) -> InstructConfig: ...

    @property
    def classify(self) -> ClassifyConfig: ...


class _Example(NamedTuple):
    record: Record
    ids: list[int]
    trained: list[bool] | None
    """None: no id is."""
    labels: list[str] | float


def ensure_examples(
    name: str,
    source: SourceConfig,
    cfg: Sections,
    objective: str,
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
    split: str,
    say: Callable[[str], None] = print,
    notices: Notices | None = None,
) -> str:
    """The folder of a source's examples (see data/examples.py), in the cache or built into it now.

    Held out is all of `eval_path`, or else `data.eval_fraction` of the records, by the hash of their text: the same
    text is on one side only, and stays there when records are added.

    Args:
      name: of the source, for messages.
      objective: `instruct`, which needs `chat`, or `classify`.
      split: `train` or `eval`; the latter may have no examples.

    Errors: UserError that names the source, and file, line and field where a record is wrong.
    """
    assert split in SPLITS
    assert objective == "classify" or chat is not None
    own = split == "eval" and source.eval_path is not None
    path = source.eval_path if own and source.eval_path else source.path
    key_name = f"data.sources.{name}.{'eval_path' if own else 'path'}"
    try:
        tally = Tally()
        files = find_records(path, tally)
        root = cache_root(cfg.data.cache_dir)
        content = remembered_fingerprint(files, root)
        fraction = cfg.data.eval_fraction if source.eval_path is None else None
        settings = _settings(source, cfg, objective, chat)
        # Paths too, although the same text elsewhere gives the same examples: `where` names them.
        parts = [
            VERSION,
            FORMAT,
            content,
            [file.path for file in files],
            tokenizer.sha256,
            split,
            own,
            fraction,
            settings,
        ]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        short = "".join(c if c.isalnum() else "-" for c in path.rstrip("/").rsplit("/", 1)[-1])[:40]
        folder = os.fspath(epath.Path(root) / "examples" / f"{short}-{split}-{key[:16]}")
        make_folder(epath.Path(root) / "examples")
        begin = time.monotonic()
        with exclusive(f"{folder}.lock"):
            known, promised = _check_known(folder, notices or Notices())
            if not known:
                build = _Build(files, source, cfg, objective, tokenizer, chat, tally)
                wanted = None if own or not fraction else (split, fraction)
                nothing = split == "eval" and not own and not fraction
                made = iter(()) if nothing else build.examples(wanted)
                _write(folder, made, build, {"settings": settings, "split": split, "content": content})
                _check_same(folder, promised)
    except UserError as error:
        raise UserError(f"{key_name}: {error}") from None
    manifest = read_manifest(folder)
    check_tokenizer(folder, manifest, tokenizer.sha256)
    if not manifest["num_examples"] and (own or split == "train"):
        raise UserError(
            f"{key_name}: {path} has no example to {'evaluate' if own else 'train on'}{_remarks(manifest)}: give more "
            "records, or lower data.eval_fraction."
        )
    how = "in the cache" if known else f"built in {time.monotonic() - begin:.1f} s"
    trained = f" ({manifest['num_trained']:,} trained)" if objective == "instruct" else ""
    say(
        f"{name}, {split}: {manifest['num_examples']:,} examples, {manifest['num_tokens']:,} tokens{trained}; {how}: "
        f"{folder}{_remarks(manifest)}"
    )
    if chat is not None and chat.note and split == "train":
        say(f"note: {chat.note}")
    return folder


def _check_known(folder: str, notices: Notices) -> tuple[bool, str | None]:
    """(whether the folder holds all that was built, what its manifest says is the hash of it if it can be read).

    A folder that is damaged is to be built again.
    """
    if not (epath.Path(folder) / EXAMPLES).exists():
        return False, None
    promised = None
    try:
        promised = read_manifest(folder)["sha256"]
        ExampleStore(folder, notices=notices)
    except DamagedExamples as error:
        notices("data_rebuilt", file=folder, reason=str(error).removeprefix(f"{folder} is damaged: "))
        return False, promised
    return True, promised


def _check_same(folder: str, promised: str | None) -> None:
    """UserError if what was built again is not what was there before: a run that was interrupted must not go on."""
    found = read_manifest(folder)["sha256"]
    if promised not in (None, found):
        raise UserError(
            f"{folder} was damaged and was built again, but came out otherwise ({found[:12]} instead of "
            f"{promised[:12]}, SHA-256 of its examples): another version of jaxlm or of the tokenizer's library made "
            "it. Start new runs with it in another --workdir; to go on with one, use the versions it began with."
        )


def _settings(
    source: SourceConfig, cfg: Sections, objective: str, chat: ChatTemplate | None
) -> dict[str, Any]:
    """All that decides about the examples of a file, but for the tokenizer and the split."""
    common = {
        "objective": objective,
        "columns": source.columns,
        "invalid_utf8": cfg.data.invalid_utf8,
        "seq_len": cfg.data.seq_len,
    }
    if chat is None or objective != "instruct":
        return {**common, "task": cfg.classify.task}
    one = cfg.instruct
    return {
        **common,
        "template": chat.text,
        "train_on": one.train_on,
        "train_on_prompt": one.train_on_prompt,
        "strict": one.strict,
    }


def _remarks(manifest: Mapping[str, Any]) -> str:
    counts = [(f"{reason} dropped", n) for reason, n in manifest["dropped"].items()]
    counts += [(f"{reason} repaired", n) for reason, n in manifest["changed"].items()]
    counts += [("truncated", manifest["num_truncated"])] if manifest["num_truncated"] else []
    return f" ({', '.join(f'{n:,} {what}' for what, n in counts)})" if counts else ""


class _Build:
    """One pass over the records of a source."""

    def __init__(
        self,
        files: Sequence[InputFile],
        source: SourceConfig,
        cfg: Sections,
        objective: str,
        tokenizer: Tokenizer,
        chat: ChatTemplate | None,
        tally: Tally,
    ):
        self.files, self.source, self.cfg, self.objective = files, source, cfg, objective
        self.tokenizer, self.chat, self.tally = tokenizer, chat, tally
        self.columns: ColumnMap | None = None
        self.num_truncated = 0

    @property
    def task(self) -> str | None:
        """classify.task; None for dialogues."""
        return self.cfg.classify.task if self.objective == "classify" else None

    def examples(self, wanted: tuple[str, float] | None) -> Iterator[_Example]:
        """The examples of (split, share that is held out); None: of all records."""
        records = self._parsed(self.tally)
        if wanted is not None:
            split, fraction = wanted
            texts = (_text_of(parsed) for _, parsed in self._parsed(Tally()))
            plan = plan_split("hash", fraction, texts)
            held_out = plan.threshold if plan.kind == "hash" else 0  # one record: it is trained on
            records = (
                pair for pair in records if (hash_of(_text_of(pair[1])) < held_out) == (split == "eval")
            )
        return self._dialogues(records) if self.objective == "instruct" else self._texts(records)

    def _parsed(self, tally: Tally) -> Iterator[tuple[Record, Any]]:
        """(record, dialogue or (text, labels)) of all records that have something to learn."""
        for file in self.files:
            for record in read_records(file, self.cfg.data.invalid_utf8, tally):
                self.columns = self.columns or open_columns(self.source.columns, self.objective, record)
                try:
                    if self.objective == "instruct":
                        yield record, dialogue(record, self.columns, tally.changed)
                    else:
                        yield record, labelled(record, self.columns, self.cfg.classify.task)
                except Dropped as reason:
                    self._drop(record, str(reason), tally)

    def _drop(self, record: Record, reason: str, tally: Tally) -> None:
        if self.objective == "instruct" and self.cfg.instruct.strict:
            raise UserError(
                f"{record.where}: nothing to learn ({reason.replace('_', ' ')}), which instruct.strict=True refuses. "
                "Mend the record, or raise data.seq_len if it was truncated."
            )
        tally.dropped[reason] += 1

    def _dialogues(self, records: Iterable[tuple[Record, Sequence[Message]]]) -> Iterator[_Example]:
        assert self.chat is not None
        one, most = self.cfg.instruct, self.cfg.data.seq_len + 1
        for record, messages in records:
            try:
                ids, trained = self.chat.example(messages, one.train_on, one.train_on_prompt)
            except UserError as error:
                raise UserError(f"{record.where}: {error}") from None
            if not any(trained[1:most]):
                self._drop(
                    record, "answer_truncated_away" if any(trained[1:]) else "nothing_trained", self.tally
                )
                continue
            self.num_truncated += len(ids) > most
            yield _Example(record, ids[:most], trained[:most], [])

    def _texts(self, records: Iterable[tuple[Record, tuple[str, Any]]]) -> Iterator[_Example]:
        prefix, most = list(self.tokenizer.prefix_ids), self.cfg.data.seq_len
        while batch := list(itertools.islice(records := iter(records), _BATCH)):
            encoded = self.tokenizer.encode_batch([text for _, (text, _) in batch])
            for (record, (_, labels)), ids in zip(batch, encoded):
                if not ids:
                    self._drop(record, "empty_text", self.tally)
                    continue
                self.num_truncated += len(prefix) + len(ids) > most
                yield _Example(record, [*prefix, *ids][:most], None, labels)


def _text_of(parsed: Any) -> str:
    """What the hash of a record is of: the dialogue, or the text without its label."""
    return parsed[0] if isinstance(parsed, tuple) else json.dumps(parsed, ensure_ascii=False)


def _write(folder: str, examples: Iterable[_Example], build: _Build, told: Mapping[str, Any]) -> None:
    """Writes a folder of examples: under another name first, so that nobody sees half of one."""
    local = is_local(folder)
    beside = os.path.dirname(folder) if local else None
    staging = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}-", dir=beside)
    try:
        names = _write_arrays(staging, examples, build, told)
        check_unchanged(build.files)
        if local:
            shutil.rmtree(folder, ignore_errors=True)  # damaged: it has no manifest
            os.chmod(staging, 0o755)
            os.replace(staging, folder)
        else:
            make_folder(folder)
            for name in names:  # the manifest last
                (epath.Path(folder) / name).write_bytes(epath.Path(staging, name).read_bytes())
    except OSError as error:
        raise disk_error(folder, error) or error from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_arrays(
    staging: str, examples: Iterable[_Example], build: _Build, told: Mapping[str, Any]
) -> list[str]:
    is_number = build.task == "regression"
    kinds = {
        "tokens": (token_dtype(build.tokenizer.vocab_size), ()),
        "trained": (np.bool_, ()),
        "ends": ("<i8", ()),
        "places": ("<i8", (2,)),
        "labels": ("<f4" if is_number else "<i4", ()),
        "label_ends": ("<i8", ()),
    }
    arrays = {name: GrowingArray(os.path.join(staging, f"{name}.npy"), *kind) for name, kind in kinds.items()}
    files: dict[tuple[str, str], int] = {}
    names: dict[str, int] = {}
    flat: list[float] = []
    counts: Counter[str] = Counter()
    tokens = trained = 0
    for example in examples:
        mask = example.trained or [False] * len(example.ids)
        tokens += len(example.ids)
        trained += sum(mask[1:])
        record = example.record
        arrays["tokens"].add(example.ids)
        arrays["trained"].add(mask)
        arrays["ends"].add([tokens])
        arrays["places"].add([files.setdefault((record.file, record.unit), len(files)), record.number])
        if isinstance(example.labels, list):
            flat += [names.setdefault(label, len(names)) for label in example.labels]
            counts.update(example.labels)
        else:
            flat.append(example.labels)
        arrays["label_ends"].add([len(flat)])
    ordered = sort_labels(names)
    order = {names[label]: place for place, label in enumerate(ordered)}
    arrays["labels"].add(flat if is_number else [order[int(i)] for i in flat])
    content = hashlib.sha256(build.tokenizer.sha256.encode())
    for name, array in arrays.items():
        array.close()
        content.update(f"\n{name} {array.sha.hexdigest()}".encode())
    content.update(json.dumps(ordered).encode())
    checked = {name: file_checksums(os.path.join(staging, f"{name}.npy")) for name in arrays}
    checksums = npy(np.concatenate([crcs for _, crcs in checked.values()]))
    write_atomic(os.path.join(staging, f"{CHECKSUMS}.npy"), checksums)
    manifest = {
        "format": FORMAT,
        "sha256": content.hexdigest(),
        "tokenizer_sha256": build.tokenizer.sha256,
        "num_examples": arrays["ends"].shape[0],
        "num_tokens": tokens,
        "num_trained": trained,
        "num_truncated": build.num_truncated,
        "dropped": dict(sorted(build.tally.dropped.items())),
        "changed": dict(sorted(build.tally.changed.items())),
        "task": build.task,
        "labels": ordered,
        "label_counts": {label: counts[label] for label in ordered},
        "columns": build.columns._asdict() if build.columns else None,
        "template": build.chat.name if build.chat else None,
        "files": list(files),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "file_bytes": {name: size for name, (size, _) in checked.items()},
        "crc32_sha256": sha256(checksums),
        "split": told["split"],
        "settings": told["settings"],
        "source": [{"name": n, "num_bytes": b, "sha256": h} for n, b, h in told["content"][:1000]],
    }
    write_atomic(
        os.path.join(staging, EXAMPLES),
        (json.dumps(sealed(manifest), indent=1, ensure_ascii=False) + "\n").encode(),
    )
    return [*(f"{name}.npy" for name in (*arrays, CHECKSUMS)), EXAMPLES]


def sort_labels(names: Iterable[str]) -> list[str]:
    """Labels in their order: by value if all are whole numbers, else as texts."""
    names = set(names)
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
