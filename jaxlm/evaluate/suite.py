"""A small suite of our own for base models: answer questions, translate, summarise; English, Bengali and French.

It says what a checkpoint can do before it is tuned: nothing at first, later better than chance at choosing, later still
its own words. So each task is scored in three ways, from the one that moves first to the one that moves last: the bits
that a byte of the wanted answer costs, which of several answers is the most probable, and what is written greedily.
Everything lies in the package (`suite/*.jsonl`, written for it); nothing is fetched.
"""

from __future__ import annotations

import functools
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.evaluate.loglikelihood import Row, Scorer
from jaxlm.evaluate.standard_errors import of_mean, of_ratio
from jaxlm.evaluate.text_metrics import exact_match, token_f1
from jaxlm.infer.text import continue_ids
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError

FOLDER = Path(__file__).parent / "suite"
NUM_EXAMPLES = 4
"""The first items of each file are only shown, and never asked: with --shots=N the first N of them."""
NUM_TRANSLATIONS = 4
"""A translation is chosen among so many: the right one, and those of the items after it."""


class Item(NamedTuple):
    """One question."""

    prompt: str
    """Without the space before the answer."""
    answers: tuple[str, ...]
    """Any of them is right; the first is the reference."""
    choices: tuple[str, ...]
    """The first is the right one."""


class SuiteTask(NamedTuple):
    """One kind of question."""

    name: str
    what: str
    items: tuple[Item, ...]
    max_new_tokens: int

    @property
    def chance(self) -> float:
        """Share of right choices of a model that knows nothing."""
        asked = self.items[NUM_EXAMPLES:]
        return sum(1 / len(item.choices) for item in asked) / len(asked)


def read_lines(name: str) -> list[dict[str, Any]]:
    """The records of a file of the package."""
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def questions(language: str, ask: str, answer: str) -> tuple[Item, ...]:
    """Short questions: {question, answers, wrong}."""
    return tuple(
        Item(f"{ask}: {r['question']}\n{answer}:", tuple(r["answers"]), (r["answers"][0], *r["wrong"]))
        for r in read_lines(f"questions_{language}")
    )


def translations(source: str, target: str, names: dict[str, str]) -> tuple[Item, ...]:
    """Sentences {en, bn, fr}; the wrong choices are the translations of other sentences."""
    rows = read_lines("translations")

    def others(i: int) -> list[str]:
        return [rows[(i + n) % len(rows)][target] for n in range(1, NUM_TRANSLATIONS)]

    return tuple(
        Item(f"{names[source]}: {r[source]}\n{names[target]}:", (r[target],), (r[target], *others(i)))
        for i, r in enumerate(rows)
    )


def summaries(language: str, ask: str, answer: str) -> tuple[Item, ...]:
    """Paragraphs {text, summary, wrong}: a wrong summary is about something like it, or says what the text does not."""
    return tuple(
        Item(f"{ask}: {r['text']}\n{answer}:", (r["summary"],), (r["summary"], *r["wrong"]))
        for r in read_lines(f"summaries_{language}")
    )


@functools.cache
def suite_tasks() -> dict[str, SuiteTask]:
    """All tasks by name."""
    names = {"en": "English", "bn": "বাংলা", "fr": "Français"}
    tasks = [
        SuiteTask("questions_en", "answer a question", questions("en", "Question", "Answer"), 16),
        SuiteTask("questions_bn", "answer a question in Bengali", questions("bn", "প্রশ্ন", "উত্তর"), 48),
        SuiteTask("translate_en_bn", "English to Bengali", translations("en", "bn", names), 96),
        SuiteTask("translate_bn_en", "Bengali to English", translations("bn", "en", names), 48),
        SuiteTask("translate_en_fr", "English to French", translations("en", "fr", names), 48),
        SuiteTask("summarise_en", "one sentence for a paragraph", summaries("en", "Text", "In one sentence"), 48),
        SuiteTask("summarise_bn", "one sentence in Bengali", summaries("bn", "লেখা", "এক বাক্যে সারাংশ"), 128),
    ]  # fmt: skip
    return {task.name: task for task in tasks}


@dataclass(frozen=True)
class SuiteResult:
    """How one task went; every number with its standard error, by item."""

    task: str
    num_shots: int
    num_items: int
    chance: float
    values: dict[str, float | None]
    """bits_per_byte of the wanted answer, choice and choice_per_byte (shares of right choices by log-likelihood, plain
    and divided by bytes), exact_match and token_f1 of greedy answers in [0, 1], chrf in [0, 100] (None without
    sacrebleu)."""
    errors: dict[str, float | None]
    num_truncated: int
    """Prompts that lost their beginning, since the model reads no more."""
    items: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the items, for JSON."""
        found: dict[str, Any] = {"task": self.task, "shots": self.num_shots, "num_items": self.num_items}
        found["chance"] = self.chance
        for name, value in self.values.items():
            found[name], found[f"{name}_stderr"] = value, self.errors[name]
        return {**found, "num_truncated": self.num_truncated}


def shown(task: SuiteTask, num_shots: int) -> str:
    """The examples that stand before every question."""
    if not 0 <= num_shots <= NUM_EXAMPLES:
        raise UserError(
            f"--shots={num_shots}: the suite has {NUM_EXAMPLES} examples to show; give 0 to {NUM_EXAMPLES}."
        )
    return "".join(f"{item.prompt} {item.answers[0]}\n\n" for item in task.items[:num_shots])


def pick_tasks(names: Sequence[str]) -> list[SuiteTask]:
    """Tasks by name; none: all. Errors: UserError for an unknown one, with the nearest."""
    from jaxlm.config import check_choice

    tasks = suite_tasks()
    for name in names:
        check_choice("--suite-tasks", name, tuple(tasks))
    return [tasks[name] for name in names or tasks]


def evaluate_suite(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    scorer: Scorer,
    *,
    max_length: int,
    num_shots: int = 0,
    names: Sequence[str] = (),
    batch_size: int = 32,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[SuiteResult]:
    """Runs the tasks.

    Args:
      max_length: the most tokens the model reads; a longer prompt loses its beginning.
      num_shots: examples before each question, at most NUM_EXAMPLES.
      names: of tasks; none: all.
    """
    return [
        _evaluate(lm, params, tokenizer, scorer, task, max_length, num_shots, batch_size, on_progress)
        for task in pick_tasks(names)
    ]


def _evaluate(
    lm,
    params,
    tokenizer: Tokenizer,
    scorer: Scorer,
    task: SuiteTask,
    max_length,
    num_shots,
    batch_size,
    on_progress,
) -> SuiteResult:
    before = shown(task, num_shots)
    asked = task.items[NUM_EXAMPLES:]
    prompts = [[*tokenizer.prefix_ids, *tokenizer.encode(before + item.prompt)] for item in asked]
    rows = [
        _row(tokenizer, before + item.prompt, ids, choice, max_length)
        for item, ids in zip(asked, prompts, strict=True)
        for choice in item.choices
    ]
    scores = iter(scorer.score(rows, batch_size=batch_size))
    by_item = [[next(scores).total for _ in item.choices] for item in asked]
    new = min(task.max_new_tokens, max(1, max_length // 2))
    room = max_length - new
    num_truncated = sum(len(ids) > room for ids in prompts)
    answers = continue_ids(
        lm, params, tokenizer, [ids[-room:] for ids in prompts], stop_ids=tokenizer.stop_ids, max_new_tokens=new,
        stop=["\n"], temperature=0.0, batch_size=batch_size,
    )  # fmt: skip
    items = [
        _item(item, totals, answer.text.strip())
        for item, totals, answer in zip(asked, by_item, answers, strict=True)
    ]
    if on_progress is not None:
        on_progress(f"questions of {task.name}", len(items), len(items))
    return _result(task, num_shots, num_truncated, items)


def _row(tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], answer: str, max_length: int) -> Row:
    """Prompt and answer as the tokenizer cuts them together, as many of their last tokens as the model reads."""
    whole = [*tokenizer.prefix_ids, *tokenizer.encode(f"{prompt} {answer}")]
    pairs = zip(whole, prompt_ids)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole) - 1, len(prompt_ids)))
    cut = max(0, len(whole) - max_length - 1)
    return Row(whole[cut:], max(start - cut, 1))


def _item(item: Item, totals: Sequence[float], answer: str) -> dict[str, Any]:
    """How a question went; totals: log-likelihood of each choice, in nats."""
    sizes = [len(choice.encode()) for choice in item.choices]
    answer = unicodedata.normalize("NFC", answer)
    return {
        "prompt": item.prompt,
        "answer": answer,
        "wanted": list(item.answers),
        "bits": -totals[0] / math.log(2),
        "bytes": sizes[0],
        "choice": float(_best(totals) == 0),
        "choice_per_byte": float(_best([t / n for t, n in zip(totals, sizes, strict=True)]) == 0),
        "exact_match": float(any(exact_match(answer, wanted) for wanted in item.answers)),
        "token_f1": max(token_f1(answer, wanted) for wanted in item.answers),
        "chrf": _chrf(answer, item.answers),
    }


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], i))  # a tie is no right choice


def _chrf(answer: str, wanted: Sequence[str]) -> float | None:
    """chrF2 of one sentence, 0 to 100; None without sacrebleu."""
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        return None
    return float(CHRF().sentence_score(answer, list(wanted)).score)


def _result(task: SuiteTask, num_shots: int, num_truncated: int, items: list[dict[str, Any]]) -> SuiteResult:
    bits, sizes = [item["bits"] for item in items], [item["bytes"] for item in items]
    values: dict[str, float | None] = {"bits_per_byte": sum(bits) / sum(sizes)}
    errors: dict[str, float | None] = {"bits_per_byte": of_ratio(bits, sizes)}
    for name in ("choice", "choice_per_byte", "exact_match", "token_f1", "chrf"):
        found = [item[name] for item in items]
        known = all(value is not None for value in found)
        values[name] = sum(found) / len(found) if known else None
        errors[name] = of_mean(found) if known else None
    return SuiteResult(task.name, num_shots, len(items), task.chance, values, errors, num_truncated, items)
