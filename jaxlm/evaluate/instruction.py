"""How well a model follows instructions: its greedy answers to held-out records, and the loss of those wanted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxlm.data.chat import ChatTemplate
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.evaluate.rules import Rule, RuleResult, apply_rules
from jaxlm.evaluate.text_metrics import chrf_and_bleu, exact_match, normalise, rouge_l, token_f1
from jaxlm.infer.instructions import Question
from jaxlm.infer.sample import axis_size, round_cache, round_rows
from jaxlm.infer.text import Continuation, continue_ids
from jaxlm.models.build import LM
from jaxlm.objectives.next_token import make_loss
from jaxlm.types import Params, UserError

LOSS_ROWS = 8


@dataclass(frozen=True)
class Consistency:
    """Whether rewordings of a question (records of one `group`) get the same answer, once normalised."""

    num_groups: int
    """Of two records or more."""
    num_agreeing: int
    """Groups with a single answer."""
    num_pairs: int
    num_agreeing_pairs: int

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **vars(self),
            "agreement": self.num_agreeing / self.num_groups,
            "pairwise_agreement": self.num_agreeing_pairs / self.num_pairs,
        }


def consistency(groups: Sequence[Any], answers: Sequence[str]) -> Consistency | None:
    """Of records with a group that is not None; None where no group has two of them."""
    by_group: dict[Any, list[str]] = {}
    for group, answer in zip(groups, answers, strict=True):
        if group is not None:
            by_group.setdefault(group, []).append(normalise(answer) or answer.strip())
    found = [members for members in by_group.values() if len(members) > 1]
    if not found:
        return None
    pairs = [a == b for members in found for a, b in itertools.combinations(members, 2)]
    return Consistency(len(found), sum(len(set(members)) == 1 for members in found), len(pairs), sum(pairs))


@dataclass(frozen=True)
class AnswerLoss:
    """How well the model predicts the wanted answers, each token given the true ones before it."""

    nats: float
    """Sum over all tokens of all answers, those that end a turn included."""
    num_tokens: int

    @property
    def loss(self) -> float:
        """Nats per token of an answer: every token counts the same, not every record."""
        return self.nats / self.num_tokens


def answer_loss(
    lm: LM, params: Params, examples: Sequence[tuple[Sequence[int], Sequence[bool]]]
) -> AnswerLoss:
    """Sum / sum over (ids, whether each is trained on); an example's first id is no target.

    Errors: UserError where nothing is to be predicted, or the loss is not finite.
    """
    loss, limit = make_loss(lm), axis_size(lm, params, "positions")
    score = jax.jit(lambda params, batch: loss(params, batch)[1].loss)
    nats, num_tokens = 0.0, 0
    by_length = sorted(examples, key=lambda example: len(example[0]))
    for first in range(0, len(by_length), LOSS_ROWS):
        rows = by_length[first : first + LOSS_ROWS]
        B, T = round_rows(len(rows)), round_cache(len(rows[-1][0]) - 1, limit)
        tokens_BT, weights_BT = np.zeros((B, T + 1), np.int32), np.zeros((B, T + 1), np.float32)
        segments_BT = np.zeros((B, T), np.int32)
        for i, (ids, trained) in enumerate(rows):
            tokens_BT[i, : len(ids)], weights_BT[i, : len(ids)] = ids, trained
            segments_BT[i, : len(ids) - 1] = 1
        batch = {
            "tokens": tokens_BT[:, :-1],
            "targets": tokens_BT[:, 1:],
            "weights": weights_BT[:, 1:],
            "segments": segments_BT,
            "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        }
        nats += float(score(params, batch))
        num_tokens += int(weights_BT[:, 1:].sum())
    if not num_tokens:
        raise UserError("the records hold no token of an answer: nothing can be predicted.")
    if not math.isfinite(nats):
        raise UserError(
            "the loss is not finite: the weights have diverged or are damaged. Try an earlier step."
        )
    return AnswerLoss(nats, num_tokens)


@dataclass(frozen=True)
class InstructionReport:
    """Means over records, unless said otherwise; shares and metrics in [0, 1], chrF and BLEU in [0, 100]."""

    num_records: int
    too_long: list[str]
    """Records that were left out: with their answer they go beyond the positions of the model."""
    exact_match: float
    token_f1: float
    rouge_l: float
    corpus: dict[str, Any] | None
    """chrf, bleu and their signatures; None without sacrebleu."""
    answer_loss: AnswerLoss
    mean_tokens: float
    """Of the model's answers."""
    mean_reference_tokens: float
    stop_rate: float
    """Share of answers that the model ended by itself, before max_new_tokens."""
    max_new_tokens: int
    rules: list[RuleResult]
    consistency: Consistency | None
    records: list[dict[str, Any]]
    """For each record: what was asked, said and wanted, and how it scored."""

    def as_dict(self) -> dict[str, Any]:
        """Everything but the records, for JSON."""
        return {
            "num_records": self.num_records,
            "too_long": self.too_long,
            "exact_match": self.exact_match,
            "token_f1": self.token_f1,
            "rouge_l": self.rouge_l,
            **(self.corpus or {"chrf": None, "bleu": None}),
            "answer_loss": self.answer_loss.loss,
            # Past 700 nats a float has no room for it.
            "answer_perplexity": math.exp(min(self.answer_loss.loss, 700)),
            "num_answer_tokens": self.answer_loss.num_tokens,
            "mean_tokens": self.mean_tokens,
            "mean_reference_tokens": self.mean_reference_tokens,
            "stop_rate": self.stop_rate,
            "max_new_tokens": self.max_new_tokens,
            "rules": [result.as_dict() for result in self.rules],
            "consistency": None if self.consistency is None else self.consistency.as_dict(),
        }


def evaluate_instructions(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    questions: Sequence[Question],
    *,
    rules: Sequence[Rule] = (),
    max_new_tokens: int = 256,
    batch_size: int = 32,
    train_on: str = "answers",
    on_progress: Callable[[int, int], None] | None = None,
) -> InstructionReport:
    """Answers every question greedily, and compares.

    Args:
      questions: each with the answer that is wanted.
      train_on: which turns of a dialogue answer_loss is about, as in InstructConfig.
      on_progress: on_progress(answered so far, all).

    Errors: UserError where there is no question that fits.
    """
    limit = axis_size(lm, params, "positions")
    prompts, examples, asked, too_long = [], [], [], []
    for question in questions:
        prompt = template.prompt(question.messages)
        example = template.example(question.dialogue, train_on)
        if limit is not None and max(len(prompt) + max_new_tokens, len(example[0]) - 1) > limit:
            too_long.append(question.where)
            continue
        prompts.append(prompt)
        examples.append(example)
        asked.append(question)
    if not asked:
        raise UserError(
            f"none of the {len(questions)} records can be evaluated: "
            + (
                f"with max_new_tokens={max_new_tokens} all go beyond the {limit} positions of the model."
                if too_long
                else "give some with an answer."
            )
        )
    loss = answer_loss(lm, params, examples)
    answers: list[Continuation] = []
    for first in range(0, len(prompts), batch_size):
        answers += continue_ids(
            lm,
            params,
            tokenizer,
            prompts[first : first + batch_size],
            stop_ids=template.stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            batch_size=batch_size,
        )
        if on_progress is not None:
            on_progress(len(answers), len(prompts))
    return _compare(asked, answers, too_long, loss, tokenizer, rules, max_new_tokens)


def _compare(
    questions: Sequence[Question],
    answers: Sequence[Continuation],
    too_long: list[str],
    loss: AnswerLoss,
    tokenizer: Tokenizer,
    rules: Sequence[Rule],
    max_new_tokens: int,
) -> InstructionReport:
    texts = [answer.text.strip() for answer in answers]
    references = [question.answer or "" for question in questions]
    results, by_record = apply_rules(rules, [question.instruction for question in questions], texts)
    records = []
    for question, answer, text, kept in zip(questions, answers, texts, by_record, strict=True):
        reference = question.answer or ""
        record: dict[str, Any] = {
            "where": question.where,
            "instruction": question.instruction,
            "answer": text,
            "reference": reference,
            "finish_reason": answer.finish_reason,
            "num_tokens": len(answer.tokens),
            "exact_match": exact_match(text, reference),
            "token_f1": token_f1(text, reference),
            "rouge_l": rouge_l(text, reference),
        }
        if question.group is not None:
            record["group"] = question.group
        if rules:
            record["rules"] = {name: reasons or "kept" for name, reasons in kept.items()}
        records.append(record)

    def mean(values: Sequence[float]) -> float:
        return float(sum(values) / len(questions))

    return InstructionReport(
        num_records=len(questions),
        too_long=too_long,
        exact_match=mean([record["exact_match"] for record in records]),
        token_f1=mean([record["token_f1"] for record in records]),
        rouge_l=mean([record["rouge_l"] for record in records]),
        corpus=chrf_and_bleu(texts, references),
        answer_loss=loss,
        mean_tokens=mean([len(answer.tokens) for answer in answers]),
        mean_reference_tokens=mean([len(tokenizer.encode(reference)) for reference in references]),
        stop_rate=mean([answer.finish_reason != "length" for answer in answers]),
        max_new_tokens=max_new_tokens,
        rules=results,
        consistency=consistency([question.group for question in questions], texts),
        records=records,
    )
