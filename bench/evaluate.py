"""How fast tasks are scored, beside lm-eval's own `hf` model on the same weights: `python bench/evaluate.py`.

SmolLM2-135M's shape in float32, with random weights, or a checkpoint of Hugging Face (--weights=FOLDER). Questions with
four answers of several tokens (log-likelihoods), and questions with short written answers. Both models take turns in
one process, several times, and the best of each counts; the first turn, which compiles, is printed apart.

Where torch and transformers are not importable, only jaxlm's own figures are printed.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_QUESTIONS, NUM_WRITTEN, NEW_TOKENS = 24, 8, 32
WORDS = "time year people way day man thing woman life child world school state family student group country".split()


def requests(kind: str) -> list[Any]:
    """Of lm-eval: questions of 20 to 60 words, with four answers of 2 to 8, or to be answered."""
    from lm_eval.api.instance import Instance

    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    found = []
    for i in range(NUM_QUESTIONS if kind == "loglikelihood" else NUM_WRITTEN):
        question = f"Question: {text(20, 60)}?\nAnswer:"
        if kind == "loglikelihood":
            arguments = [(question, " " + text(2, 8)) for _ in range(4)]
        else:
            arguments = [(question, {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False})]
        found += [Instance(kind, {}, one, n, (None, i, None)) for n, one in enumerate(arguments)]
    return found


def make_weights(folder: Path) -> None:
    """A checkpoint of SmolLM2-135M's shape, and a tokenizer of bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=49152, special_tokens=["<|endoftext|>"], show_progress=False)
    made.train_from_iterator([" ".join(WORDS), "Question: ? Answer: \n"], trainer)
    end = "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=end, eos_token=end, pad_token=end
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        max_position_embeddings=2048, eos_token_id=0, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    # jaxlm never writes ids that the tokenizer does not have; so that hf will not either, they get a logit of 0.
    model.get_input_embeddings().weight.data[len(tokenizer) :] = 0.0
    model.save_pretrained(folder)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="folder of a checkpoint of Hugging Face (default: random weights)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each model (default: 3)")
    parser.add_argument("--batch-size", type=int, default=16, help="of both (default: 16)")
    args = parser.parse_args()
    from jaxlm.evaluate.harness import require, set_offline

    require()
    set_offline(True)
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        compare(args, Path(scratch))


def compare(args: argparse.Namespace, scratch: Path) -> None:
    """Both models on both kinds of requests."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        print(
            "evaluate: torch and transformers are not here, and the comparison needs both (make parity has them)"
        )
        return
    from jaxlm.run_interop import import_hf
    from jaxlm.run_lm_eval import RunLM

    weights = Path(args.weights or scratch / "weights")
    if args.weights is None:
        make_weights(weights)
    import_hf(str(weights), scratch / "run", say=lambda line: None)
    from lm_eval.models.huggingface import HFLM

    models = {
        "jaxlm": RunLM(run=scratch / "run", batch_size=args.batch_size),
        "hf": HFLM(pretrained=str(weights), device="cpu", dtype="float32", batch_size=args.batch_size),
    }
    for kind in ("loglikelihood", "generate_until"):
        times: dict[str, list[float]] = {name: [] for name in models}
        answers: dict[str, Any] = {}
        for _ in range(args.rounds + 1):
            for name, model in models.items():
                asked = requests(kind)
                begin = time.perf_counter()
                answers[name] = getattr(model, kind)(asked, disable_tqdm=True)
                times[name].append(time.perf_counter() - begin)
        num = len(answers["hf"])
        first = {name: found[0] for name, found in times.items()}
        best = {name: min(found[1:]) for name, found in times.items()}
        rates = ", ".join(
            f"{name} {num / seconds:.2f} requests/s (first turn {first[name]:.1f} s)"
            for name, seconds in best.items()
        )
        print(
            f"evaluate {kind}, batch {args.batch_size}: {rates}; ratio {best['hf'] / best['jaxlm']:.2f}; "
            f"{agreement(kind, answers)}"
        )


def agreement(kind: str, answers: dict[str, Any]) -> str:
    """How far the two differ."""
    pairs = list(zip(answers["jaxlm"], answers["hf"], strict=True))
    if kind == "loglikelihood":
        return f"largest difference {max(abs(a[0] - b[0]) for a, b in pairs):.1e} nats"
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)} answers equal"


if __name__ == "__main__":
    main()
