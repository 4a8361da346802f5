"""A checkpoint as the playground asks it: which panels it has, and what each of them computes.

All numbers come from `jaxlm.infer`, as those of the command line do; nothing is kept between two requests, so that
browsers do not disturb each other. Prompts are rounded up to a few lengths: only the first of each compiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.chat import Conversation, run_template
from jaxlm.infer.next_token import next_token_distribution
from jaxlm.infer.predict import Text, classifier_of, predict_texts
from jaxlm.infer.sample import axis_size
from jaxlm.infer.text import TextStream, continue_ids, encode_prompt
from jaxlm.infer.weights import compute_weights
from jaxlm.playground.fields import MAX_NEW_TOKENS, MAX_TEXTS, MAX_TOP, MAX_WORDS, Fields
from jaxlm.playground.worker import Job
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.run_loading import LoadedRun

MIN_CONTEXT, MAX_CONTEXT = 1024, 8192
"""Of the tokens of a prompt: a model that was trained on less may be tried beyond it, none with more."""
SLOTS = (256, 1024, 2048, 4096, 8192)
"""Sizes of the cache: each is compiled once, whatever the lengths of prompts."""
TEXT_DEFAULT, CHAT_DEFAULT = 100, 256
"""New tokens, as of `jaxlm generate` and `jaxlm chat`."""


def parts_of(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    """The tokens as the page shows them."""
    return [{"id": token, "piece": tokenizer.piece(token)} for token in ids]


class Model:
    """One checkpoint. Methods that take a Job are for the worker's thread; their errors are UserErrors."""

    def __init__(self, workdir: str, loaded: LoadedRun, shared: Model | None = None):
        """shared: a model whose compiled functions serve, where it has the same shape (another step of its run)."""
        cfg = loaded.config
        lm = loaded.lm
        if shared is not None and (shared.config.model, shared.config.data.seq_len) == (
            cfg.model,
            cfg.data.seq_len,
        ):
            lm = shared.lm
        self.workdir, self.config, self.lm = workdir, cfg, lm
        # In the dtype it computes with: no second copy for decoding, and the same numbers.
        self.params = compute_weights(lm, loaded.params)
        self.tokenizer = loaded.tokenizer
        self.step = loaded.step
        self.limit = axis_size(lm, self.params, "positions")
        self.trained_tokens = loaded.context_tokens
        self.context = self.limit or min(max(loaded.context_tokens, MIN_CONTEXT), MAX_CONTEXT)
        self.classifier = self.template = None
        if cfg.objective == "classify" or cfg.model.num_classes is not None:
            self.classifier = classifier_of(loaded._replace(lm=lm, params=self.params))
        elif cfg.objective == "instruct" or loaded.tokenizer.chat_template is not None:
            self.template = run_template(workdir, self.tokenizer, cfg.objective)
        self.num_params = sum(w.size for w in jax.tree.leaves(self.params))

    @property
    def panels(self) -> tuple[str, ...]:
        """What this model can be asked."""
        if self.classifier is not None:
            return ("classify",)
        return ("next", *(["chat"] if self.template is not None else []), "continue")

    @property
    def title(self) -> str:
        """Run and step, for people."""
        name = os.path.basename(os.path.normpath(self.workdir)) or self.workdir
        return f"{name}, step {self.step:,}"

    def describe(self) -> dict[str, Any]:
        """What the page has to know."""
        kind = "classifier" if self.classifier else "chat model" if self.template else "language model"
        return {
            "title": self.title,
            "kind": kind,
            "panels": self.panels,
            "num_params": self.num_params,
            "vocab_size": self.tokenizer.vocab_size,
            "context": self.context,
            "trained_tokens": self.trained_tokens,
            "task": self.classifier.task if self.classifier else None,
            "labels": list(self.classifier.names) if self.classifier else [],
        }

    def need(self, panel: str) -> None:
        """Raises UserError where the model lacks a panel."""
        if panel not in self.panels:
            raise UserError(f"{self.title} cannot do this: it has {', '.join(self.panels)}.")

    def _start(self, fields: Fields) -> tuple[str, list[int], int]:
        """(text so far, its tokens, how many of them the prompt has) of a prompt and what was picked after it."""
        prompt = fields.text("prompt")
        picked = fields.ids("picked", self.tokenizer.vocab_size)
        ids = encode_prompt(self.tokenizer, prompt)
        if len(ids) + len(picked) > self.context:
            raise UserError(
                f"the text has {len(ids) + len(picked):,} tokens; the playground reads {self.context:,} of this model, "
                f"which was trained on {self.trained_tokens:,} at a time: shorten it."
            )
        stream = TextStream(self.tokenizer, ids)
        for token in picked:
            stream.push(token)
        return prompt + stream.text, [*ids, *picked], len(ids)

    def next_token(self, job: Job, fields: Fields) -> None:
        """Emits the distribution after a prompt and the tokens picked since: what `jaxlm next-token --json` prints."""
        self.need("next")
        text, ids, num_prompt = self._start(fields)
        words = [word.strip() for word in fields.texts("candidates", MAX_WORDS, "words", 100)]
        top = fields.whole("top", 1, MAX_TOP, 10)
        sampling = fields.sampling()
        job.check()
        found = next_token_distribution(
            self.lm, self.params, self.tokenizer, text,
            ids=ids, candidates=[word for word in words if word], top=top, **sampling,
        )  # fmt: skip
        job.emit(
            {
                "event": "distribution",
                "distribution": found.as_dict(),
                "num_prompt": num_prompt,
                "ends": [token for token in self.tokenizer.stop_ids],
                "note": self._note(len(ids)),
            }
        )

    def _note(self, num_tokens: int) -> str | None:
        if num_tokens <= self.trained_tokens:
            return None
        return (
            f"{num_tokens:,} tokens; the model was trained on {self.trained_tokens:,} at a time, and what comes after "
            "them is less reliable."
        )

    def continue_text(self, job: Job, fields: Fields) -> None:
        """Emits the tokens and the text that `jaxlm generate` continues with, as they come."""
        self.need("continue")
        _, ids, _ = self._start(fields)
        max_new_tokens = fields.whole("max_new_tokens", 1, MAX_NEW_TOKENS, TEXT_DEFAULT)
        stop = fields.texts("stop", 8, "stop strings", 200)
        sampling = fields.sampling()
        if self.limit is not None:
            max_new_tokens = min(max_new_tokens, self.limit - len(ids))
            if max_new_tokens < 1:
                raise UserError(
                    f"the text fills the {self.limit:,} positions that the model has: shorten it."
                )
        found = continue_ids(
            self.lm, self.params, self.tokenizer, [ids], stop_ids=self.tokenizer.stop_ids,
            max_new_tokens=max_new_tokens, stop=stop, on_text=_show(job), on_tokens=self._watch(job),
            slot_sizes=SLOTS, **sampling,
        )[0]  # fmt: skip
        parts = parts_of(self.tokenizer, found.tokens)
        job.emit(
            {
                "event": "done",
                "text": found.text,
                "finish_reason": found.finish_reason,
                "tokens": [{**part, "logprob": p} for part, p in zip(parts, found.logprobs, strict=True)],
                "note": self._note(len(ids) + len(found.tokens)),
            }
        )

    def _watch(self, job: Job) -> Callable[[list[int]], None]:
        """Emits new tokens, and ends where nobody waits for them."""

        def on_tokens(ids: list[int]) -> None:
            job.check()
            job.emit({"event": "tokens", "tokens": parts_of(self.tokenizer, ids)})

        return on_tokens

    def chat(self, job: Job, fields: Fields) -> None:
        """Emits the answer that `jaxlm chat` gives to a message after these turns, as it comes."""
        self.need("chat")
        assert self.template is not None
        max_new_tokens = fields.whole("max_new_tokens", 1, MAX_NEW_TOKENS, CHAT_DEFAULT)
        message = fields.text("message").strip()
        if not message:
            raise UserError("the message is empty: write something.")
        conversation = Conversation(
            self.lm, self.params, self.tokenizer, self.template,
            context_tokens=min(self.trained_tokens, self.context), max_new_tokens=max_new_tokens,
            system=fields.optional_text("system"), on_tokens=self._watch(job),
            slot_sizes=SLOTS, **fields.sampling(),
        )  # fmt: skip
        conversation.turns = fields.turns("turns")
        answer = conversation.ask(message, _show(job))
        job.emit(
            {
                "event": "done",
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "num_dropped": answer.num_dropped,
            }
        )

    def classify(self, job: Job, fields: Fields) -> None:
        """Emits what `jaxlm predict` says of each text; of one without a token, an error in its place."""
        self.need("classify")
        assert self.classifier is not None
        texts = [text for text in fields.texts("texts", MAX_TEXTS, "texts") if text.strip()]
        if not texts:
            raise UserError("there is no text to classify: write one, or several, each on its line.")
        temperature = fields.number("temperature", 1.0)
        if temperature <= 0:
            raise UserError(f"temperature={temperature} must be above 0: logits are divided by it.")
        job.check()
        lines: list[dict[str, Any]] = []
        records = [Text({"text": text}, text, f"text {i + 1}") for i, text in enumerate(texts)]
        summary = predict_texts(self.classifier, records, lines.extend, temperature=temperature)
        note = (
            f"cut to the {self.classifier.max_tokens:,} tokens the model reads"
            if summary.num_truncated
            else None
        )
        job.emit(
            {
                "event": "labels",
                "lines": lines,
                "note": note and f"{summary.num_truncated:,} texts were {note}.",
            }
        )

    def warm_up(self) -> Iterator[Callable[[], None]]:
        """What to compile before somebody waits for it, most needed first; each takes seconds at most."""
        if self.classifier is not None:
            for num in (1, 2, 4):
                yield lambda num=num: self._predict_once(num)
            return
        yield lambda: self._distribution_once(1)
        for num_tokens in (2, 34, 66, 130):
            for slots in SLOTS[:2] if self.context > SLOTS[0] else SLOTS[:1]:
                yield lambda num_tokens=num_tokens, slots=slots: self._generate_once(num_tokens, slots)
            yield lambda num_tokens=num_tokens: self._distribution_once(num_tokens)

    def _predict_once(self, num_texts: int) -> None:
        assert self.classifier is not None
        texts = [Text({}, "a", "") for _ in range(num_texts)]
        predict_texts(self.classifier, texts, lambda lines: None)

    def _some_ids(self, num_tokens: int) -> list[int]:
        return [self.tokenizer.vocab_size - 1] * min(num_tokens, self.context - 1)

    def _distribution_once(self, num_tokens: int) -> None:
        ids = self._some_ids(num_tokens)
        next_token_distribution(self.lm, self.params, self.tokenizer, "a", ids=ids)

    def _generate_once(self, num_tokens: int, slots: int) -> None:
        ids = self._some_ids(num_tokens)
        continue_ids(
            self.lm, self.params, self.tokenizer, [ids],
            stop_ids=self.template.stop_ids if self.template is not None else self.tokenizer.stop_ids,
            max_new_tokens=1, on_text=lambda row, text: None, slot_sizes=[slots],
        )  # fmt: skip


def _show(job: Job) -> Callable[..., None]:
    """Emits new text."""

    def on_text(*said: Any) -> None:
        job.emit({"event": "text", "text": said[-1]})

    return on_text


def check_together(models: list[Model]) -> None:
    """Raises UserError for checkpoints that have nothing in common to compare."""
    if len(models) < 2:
        return
    kinds = ["classifier" if model.classifier else "language model" for model in models]
    if kinds[0] != kinds[1]:
        at = kinds.index("classifier")
        raise UserError(
            f"--run={models[at].workdir} is a classifier and --run={models[1 - at].workdir} a language model: they "
            "have no answers to compare. Give two of a kind, or one run at a time."
        )
    classifiers = [model.classifier for model in models if model.classifier]
    if classifiers and classifiers[0].task != classifiers[1].task:
        raise UserError(
            f"--run={models[0].workdir} is trained for {classifiers[0].task} and --run={models[1].workdir} for "
            f"{classifiers[1].task}: their answers cannot be compared. Give two of a kind."
        )
