"""A model of jaxlm as lm-evaluation-harness asks it; needs lm-eval (extra: eval), and neither torch nor transformers.

What is asked is made into tokens as lm-eval's own `hf` model does it, so that both give the same scores:

- BOS stands in front of a text where the tokenizer wants it (or `add_bos_token` says so), but not twice;
- spaces at the end of a context belong to what follows, and both are tokenised together;
- an empty context is BOS, or EOS where there is none;
- what is longer than the model reads is cut from the left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from jaxlm.data.chat import ChatTemplate, Message
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.evaluate.loglikelihood import Placing, Row, Scorer
from jaxlm.infer.sample import generate
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError

BATCH_SIZE = 32
MAX_GEN_TOKS = 256
"""Of an answer, where a task says nothing: lm-eval's own default."""
LOOKBACK_TOKENS = 2
"""A stop string may be spelt in other tokens than its own: so many more are looked at."""
NEUTRAL = {"num_beams": 1, "use_cache": True, "num_return_sequences": 1, "repetition_penalty": 1.0}
"""Settings of transformers' generate that change nothing at this value."""
PARTS = {"loglikelihood": "options", "loglikelihood_rolling": "windows", "generate_until": "answers"}

OnProgress = Callable[[str, int, int], None]
"""on_progress(what is done, how many of it so far, all)."""


class JaxlmLM(TemplateLM):
    """lm-eval's LM on a model of jaxlm: `lm_eval.simple_evaluate(model=JaxlmLM(...), tasks=[...])`.

    The same requests give the same bits. Another batch size changes log-likelihoods by less than 1e-4 nats a token in
    float32; sampled answers depend on their place among the requests and the seed, not on the batch size.
    """

    def __init__(
        self,
        lm: LM,
        params: Params,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int | str = BATCH_SIZE,
        template: Callable[[], ChatTemplate] | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        seed: int = 0,
        placing: Placing | None = None,
        on_progress: OnProgress | None = None,
    ):
        """Wraps a model.

        Args:
          max_length: the most tokens it reads at once.
          batch_size: most rows at once; "auto": the default.
          template: opens its chat template, for --apply-chat-template; raises UserError where it has none.
          add_bos_token: whether BOS stands before every text; None: where the tokenizer wants it.
          prefix_token_id: stands for an empty context; None: BOS, else EOS.
          max_gen_toks: of an answer, where the task does not say.
          seed: of sampled answers.
          placing: on a mesh.

        Errors: UserError for a batch size that is none.
        """
        super().__init__()
        self._lm, self._params = lm, params
        self.jaxlm_tokenizer = tokenizer
        self._scorer = Scorer(lm, params, placing)
        limit = self._scorer.max_tokens
        self.max_length = max_length if limit is None else min(max_length, limit)
        self.batch_size = BATCH_SIZE if batch_size == "auto" else _whole("batch_size", batch_size)
        self._open_template = template
        self._template: ChatTemplate | None = None
        self._add_bos = add_bos_token
        self._prefix = prefix_token_id
        self.max_gen_toks = max_gen_toks
        self._seed = seed
        self._on_progress = on_progress
        self.num_truncated = 0
        """Requests that were cut from the left, so far."""
        self._encode = functools.lru_cache(maxsize=4096)(self._encode_once)

    # What lm-eval asks for by name.

    @property
    def eot_token_id(self) -> int:
        """EOS, or BOS where there is none."""
        ids = (self.jaxlm_tokenizer.eos_id, self.jaxlm_tokenizer.bos_id)
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise UserError(
                "the tokenizer has neither BOS nor EOS, so nothing can stand for an empty context. Name a token that "
                "does: --prefix-token-id=ID."
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which every token is scored."""
        if self._prefix is not None:
            return self._prefix
        bos_id = self.jaxlm_tokenizer.bos_id
        return self.eot_token_id if bos_id is None else bos_id

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers and templates apart, in lm-eval's cache of requests."""
        template = "" if self._template is None else f"-{hash_of(self._template.text)}"
        return f"jaxlm-{self.jaxlm_tokenizer.sha256[:16]}{template}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the model's chat template; None for False."""
        return self._chat().text if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialogue as text, up to where the answer begins, or goes on."""
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return self._chat().render(messages, asks=add_generation_prompt)

    def _chat(self) -> ChatTemplate:
        if self._template is None:
            if self._open_template is None:
                raise UserError("the model has no chat template: leave out --apply-chat-template.")
            self._template = self._open_template()
        return self._template

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **others: Any
    ) -> list[int]:  # fmt: skip
        """Ids of a text, with BOS as the class says; add_special_tokens: with it, or without."""
        ids = list(self._encode(string, add_special_tokens))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_once(self, string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        tokenizer = self.jaxlm_tokenizer
        adds = self._add_bos if add_special_tokens is None else add_special_tokens
        bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        prefix = (
            tokenizer.prefix_ids if adds is None or (adds and tokenizer.prefix_ids) else bos if adds else ()
        )
        if add_special_tokens is None and prefix and has_bos_prefix(string, tokenizer.piece(prefix[0])):
            prefix = ()
        return (*prefix, *tokenizer.encode_markup(string))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **others: Any
    ) -> list[tuple[float, bool]]:
        rows = []
        for (_, continuation), context_ids, ids in requests:
            if not ids:
                raise UserError(
                    f"the continuation {continuation!r} adds no token to its context: the tokenizer merges them. Begin "
                    "it with a space, or end the context with one."
                )
            rows.append(self._row(context_ids, ids))
        found = self._score("loglikelihood", rows)
        answers = [(scores.total, scores.is_greedy) for scores in found]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _row(self, context_ids: Sequence[int], ids: Sequence[int]) -> Row:
        """The tokens the model reads, cut from the left, and the one after them."""
        if len(ids) > self.max_length:
            raise UserError(
                f"a continuation of {len(ids):,} tokens is longer than the {self.max_length:,} that the model reads."
            )
        whole = [*context_ids, *ids]
        self.num_truncated += len(whole) > self.max_length + 1
        whole = whole[-(self.max_length + 1) :]
        return Row(whole, len(whole) - len(ids))

    def _score(self, what: str, rows: Sequence[Row]):
        report = None if self._on_progress is None else functools.partial(self._on_progress, PARTS[what])
        return self._scorer.score(rows, batch_size=self.batch_size, on_progress=report)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token given as many before it as the model reads, at most."""
        rows: list[Row] = []
        counts = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            found = [self._row(*utils.make_disjoint_window(window)) for window in windows]
            rows += found
            counts.append(len(found))
        scores = iter(self._score("loglikelihood_rolling", rows))
        totals = [sum(next(scores).total for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to the first of its stop strings, EOS, or its most tokens."""
        asked: list[Any] = [request.args for request in requests]
        by_settings: dict[str, list[int]] = {}
        for i, (_, gen_kwargs) in enumerate(asked):
            by_settings.setdefault(repr(gen_kwargs), []).append(i)
        answers = [""] * len(requests)
        num_done = 0
        for chosen in by_settings.values():
            # Longest first, so that rows of similar length share a batch and what fails, fails at once.
            chosen.sort(key=lambda i: (-len(self.tok_encode(asked[i][0])), i))
            for first in range(0, len(chosen), self.batch_size):
                some = chosen[first : first + self.batch_size]
                texts = self._generate([asked[i][0] for i in some], asked[some[0]][1], some)
                for i, text in zip(some, texts, strict=True):
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", asked[i], text)
                num_done += len(some)
                if self._on_progress is not None:
                    self._on_progress(PARTS["generate_until"], num_done, len(requests))
        return answers

    def _generate(self, contexts: Sequence[str], gen_kwargs: dict, row_ids: Sequence[int]) -> list[str]:
        """One batch, of equal settings."""
        sampling, until, max_new_tokens = self._settings(gen_kwargs)
        tokenizer = self.jaxlm_tokenizer
        stop_ids = [*tokenizer.stop_ids, *(() if self._template is None else self._template.stop_ids)]
        stop_ids += [tokenizer.special[text] for text in until if text in tokenizer.special]
        strings = [text for text in until if text and text not in tokenizer.special]
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"a task asks for {max_new_tokens:,} new tokens, and the model reads {self.max_length:,} in all: give "
                "fewer (--gen-kwargs=max_gen_toks=N)."
            )
        prompts = []
        for text in contexts:
            ids = self.tok_encode(text) or [self.prefix_token_id]
            self.num_truncated += len(ids) > room
            prompts.append(ids[-room:])
        longest = max((len(tokenizer.encode(text)) for text in strings), default=0) + LOOKBACK_TOKENS
        tails: list[list[int]] = [[] for _ in prompts]

        def ends(row: int, new: list[int]) -> int | None:
            """Stops a row behind the token that completes a stop string."""
            for n, token in enumerate(new, start=1):
                tails[row] = [*tails[row][-longest + 1 :], token]
                if any(text in tokenizer.decode(tails[row]) for text in strings):
                    return n
            return None

        found = generate(
            self._lm,
            self._params,
            prompts,
            max_new_tokens=max_new_tokens,
            seed=self._seed,
            row_ids=row_ids,
            eos_id=tokenizer.eos_id,
            stop_ids=list(dict.fromkeys(stop_ids)),
            vocab_size=tokenizer.vocab_size,
            batch_size=self.batch_size,
            on_tokens=ends if strings else None,
            tokens_per_call=1,  # a step of decoding costs more than looking at its token
            **sampling,
        )
        return [
            postprocess_generated_text(tokenizer.decode(one.tokens), stop=until, think_end_token=None)
            for one in found
        ]

    def _settings(self, gen_kwargs: dict) -> tuple[dict[str, Any], list[str], int]:
        """(sampling, stop strings, new tokens) of what a task asks for. Errors: UserError for a setting we lack."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until = [str(text) for text in handle_stop_sequences(list(settings.pop("until")), eos=None)]
        max_new_tokens = _whole("max_gen_toks", settings.pop("max_gen_toks"))
        do_sample, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 0.0))
        sampling = {"temperature": temperature if do_sample else 0.0}
        for name in ("top_k", "top_p", "min_p"):
            value = settings.pop(name, None)
            if do_sample and value is not None and not (name == "top_k" and value == 0):
                sampling[name] = value
        for name, value in settings.items():
            if value is not None and value != NEUTRAL.get(name):
                raise UserError(
                    f"generation_kwargs.{name}={value!r}: jaxlm has no such setting. It knows do_sample, temperature, "
                    "top_k, top_p, min_p, until and max_gen_toks."
                )
        return sampling, until, max_new_tokens

    def get_model_info(self) -> dict[str, Any]:
        """For the results of lm-eval."""
        import jax

        num = sum(w.size for w in jax.tree.leaves(self._params))
        return {
            "model_num_parameters": num,
            "max_length": self.max_length,
            "num_truncated": self.num_truncated,
        }


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UserError(f"{name}={value!r} must be a whole number, at least 1.")
    return number


def hash_of(text: str) -> str:
    """A short name for a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
