"""The part of `jaxlm evaluate` that is about texts: perplexity and bits per byte."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.run_loading import LoadedRun

FLAGS = ("window", "stride", "set", "sets", "list", "max_tokens", "text_key")
HELD_OUT = "heldout"


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for texts."""
    group = parser.add_argument_group("texts")
    group.add_argument(
        "text", nargs="*", metavar="FILE", help="UTF-8 text, .jsonl, .parquet, or a folder of these"
    )
    group.add_argument("--window", type=int, help="tokens of context at most (default: 512)")
    group.add_argument(
        "--stride", type=int, metavar="TOKENS", help="windows overlap: each starts so much later"
    )
    group.add_argument("--max-tokens", type=int, help="of each document, from its beginning (default: all)")
    group.add_argument("--text-key", metavar="NAME", help="key or column that holds the text (default: text)")
    group.add_argument(
        "--set", action="append", metavar="NAME,...",
        help="heldout: what the run has held out of all its sources; one of them by name; embedded:topics, ...; or a "
        "name of --sets",
    )  # fmt: skip
    group.add_argument("--sets", metavar="FILE", help="YAML of sets, `name: path` in each line")
    group.add_argument("--list", action="store_true", help="say which sets there are")


class Source(NamedTuple):
    """A set or a file."""

    label: dict[str, str]
    """`file` or `set`: its name."""
    documents: Callable[[LoadedRun], Iterator[Sequence[int]]]
    """Opens its documents, as ids without BOS."""


def evaluate_texts(args: argparse.Namespace) -> int:
    """Perplexity of each text and each set, and of all together."""
    if args.json not in (None, "-") and not args.json.endswith(".json"):  # of `--json text.txt`
        args.text.insert(0, args.json)
        args.json = "-"
    window = 512 if args.window is None else args.window
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UserError(f"--max-tokens={args.max_tokens} must be at least 2.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} must be at least 1.")
    from jaxlm.evaluate.text_sets import read_sets

    named = {} if args.sets is None else read_sets(args.sets)
    if args.list:
        return list_sets(args, named)
    sources = [*file_sources(args), *set_sources(args, named)]
    if not sources:
        raise UserError(
            "Nothing to evaluate: give text files, sets (--set, see --list), --suite, --tasks or records (--data=FILE)."
        )
    from jaxlm.cli._evaluate_output import show_part
    from jaxlm.evaluate.loglikelihood import Scorer
    from jaxlm.evaluate.perplexity import score_documents, together
    from jaxlm.run_evaluate import open_run

    loaded, placing = open_run(args.run, args.step, args.mesh)
    check_window(loaded, window)
    scorer = Scorer(loaded.lm, loaded.params, placing)
    found = []
    for source in sources:
        [name] = source.label.values()
        try:
            one = score_documents(
                scorer,
                loaded.tokenizer,
                source.documents(loaded),
                window=window,
                stride=args.stride,
                max_tokens=args.max_tokens,
                batch_size=args.batch_size,
                on_progress=lambda done, _: show_part("windows", done, done),
            )
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
        found.append((source.label, one))
        if args.json is None:
            print(line(name, one, window, args.stride))
    whole = together(one for _, one in found)
    if args.json is None:
        if len(found) > 1:
            print(line("all", whole, window, args.stride))
        return 0
    results = [{**label, **one.as_dict()} for label, one in found]
    return write(args, loaded, results, whole, window)


def write(
    args: argparse.Namespace, loaded: LoadedRun, results: list[dict[str, Any]], whole: Any, window: int
) -> int:
    """JSON: one text is its own object, as ever; of several, a list with their total."""
    from jaxlm.cli._evaluate_output import write_json

    about = {"run": args.run, "step": loaded.step, "window": window, "stride": args.stride}
    if len(results) == 1:
        write_json(args.json, {**results[0], **about})
    else:
        write_json(args.json, {**about, "results": results, "all": whole.as_dict()})
    return 0


def check_window(loaded: LoadedRun, window: int) -> None:
    """Errors: UserError for windows beyond what the model has positions for; a note beyond what it has learnt from."""
    import sys

    model = loaded.config.model
    learned = (model.max_seq_len or loaded.config.data.seq_len) if model.positions == "learned" else None
    if learned is not None and window - 1 > learned:
        raise UserError(
            f"--window={window} is beyond the {learned} positions of the model. Try --window={learned}."
        )
    if learned is None and window - 1 > loaded.context_tokens:
        print(
            f"note: --window={window} is beyond the {loaded.context_tokens} tokens that the model has learnt from.",
            file=sys.stderr,
        )


def line(name: str, found: Any, window: int, stride: int | None) -> str:
    """What is printed of a text."""
    from jaxlm.cli._evaluate_output import with_error

    def significant(value: float, error: float | None) -> str:
        return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")

    cut = f"; {found.num_truncated:,} cut by --max-tokens" if found.num_truncated else ""
    documents = f", {found.num_documents:,} documents" if found.num_documents > 1 else ""
    overlap = "" if stride is None else f", stride {stride}"
    return (
        f"{name}: perplexity {significant(found.perplexity, found.perplexity_error)}, loss "
        f"{with_error(found.loss, found.loss_error)} nats, "
        f"{with_error(found.bits_per_byte, found.bits_per_byte_error)} bits per byte; {found.num_tokens:,} tokens in "
        f"windows of {window}{overlap}{documents}{cut}"
    )


def file_sources(args: argparse.Namespace) -> Iterator[Source]:
    """FILEs; those that are missing or empty are named before the weights are read."""
    from jaxlm.evaluate.text_sets import is_records, read_text, read_texts

    for path in args.text:
        if is_records(path):
            if not os.path.exists(path):
                raise UserError(f"{path} does not exist.")
            texts = lambda path=path: read_texts(path, args.text_key or "text")  # noqa: E731
        else:
            text = read_text(path)
            texts = lambda text=text: iter([text])  # noqa: E731
        yield Source({"file": path}, lambda loaded, texts=texts: map(loaded.tokenizer.encode, texts()))


def set_sources(args: argparse.Namespace, named: dict[str, Any]) -> list[Source]:
    """What --set lists."""
    from jaxlm.config import nearest
    from jaxlm.evaluate.text_sets import embedded_sets, read_texts

    wanted = [name.strip() for part in args.set or () for name in part.split(",") if name.strip()]
    known = {**embedded_sets(), **named}
    sources = []
    own = run_sources(args.run) if any(name not in known for name in wanted) else []
    for name in dict.fromkeys(wanted):
        if name in known:
            one = known[name]
            texts = lambda one=one: read_texts(one.path, one.text_key)  # noqa: E731
            sources.append(
                Source({"set": name}, lambda loaded, texts=texts: map(loaded.tokenizer.encode, texts()))
            )
        elif name == HELD_OUT or name in own:
            sources.append(Source({"set": name}, lambda loaded, name=name: held_out(args.run, loaded, name)))
        else:
            match = nearest(name, [*known, HELD_OUT, *own])
            hint = f"did you mean {match}?" if match else "--list says which there are."
            raise UserError(
                f"--set={name} is no set of this run, of --sets, nor text that ships with Python; {hint}"
            )
    return sources


def run_sources(run: str) -> list[str]:
    """Names of the sources of a run of texts."""
    from jaxlm.data.files import reachable
    from jaxlm.report.missing_run import CONFIG_FILE, missing_run
    from jaxlm.runconfig import load_config

    path = reachable(run) / CONFIG_FILE
    if not path.exists():
        raise missing_run(run, "--run=")
    config = load_config(path)
    return list(config.data.sources) if config.objective == "pretrain" else []


def held_out(run: str, loaded: LoadedRun, name: str) -> Iterator[Sequence[int]]:
    """Documents that a run has held out of one of its sources, or of all, with the EOS it has learnt to write."""
    from jaxlm.run_data import open_data

    if loaded.config.objective != "pretrain":
        raise UserError(
            f"--set={name}: --run={run} has learnt from records ({loaded.config.objective}), none of which is "
            "text. Judge it with --data=FILE."
        )
    stores = open_data(loaded.config, run, quiet=True).eval
    chosen = list(stores) if name == HELD_OUT else [name]
    if not stores or any(one not in stores for one in chosen):
        raise UserError(
            f"--set={name}: the run has held nothing out of it (data.eval_fraction={loaded.config.data.eval_fraction})."
        )
    num_prefix = len(loaded.tokenizer.prefix_ids)
    for one in chosen:
        store, start = stores[one], 0
        for end in map(int, store.document_ends):
            yield store.read(start, end).tolist()[num_prefix:]
            start = end


def list_sets(args: argparse.Namespace, named: dict[str, Any]) -> int:
    """Prints the names that --set takes."""
    from jaxlm.evaluate.text_sets import embedded_sets

    own = run_sources(args.run)
    if own:
        print(f"{HELD_OUT}  (all that the run has held out)")
    for name in own:
        print(f"{name}  (held out of this source of the run)")
    for name in embedded_sets():
        print(f"{name}  (English that ships with Python)")
    for name, one in named.items():
        print(f"{name}  ({one.path})")
    return 0
