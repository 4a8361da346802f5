"""Talk with an instruction-tuned model.

jaxlm chat --run=runs/assistant --system="Answer in one sentence." --temperature=0.7 --top-p=0.9
echo "Where is the lion?" | jaxlm chat --run=runs/assistant --temperature=0

Each line is a message; the model sees the conversation so far, in the template and with the stop tokens of its
training. /reset begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from jaxlm.cli.generate import add_sampling_arguments, sampling_arguments
from jaxlm.types import UserError

COMMANDS = ("/reset", "/exit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_sampling_arguments(parser)
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of an answer (default: 256)")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Talks."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: chat takes its config from --run.")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens={args.max_new_tokens} must be at least 1.")
    sampling = sampling_arguments(args)
    from jaxlm import run_loading
    from jaxlm.infer.chat import Conversation, run_template

    loaded = run_loading.load_run(args.run, args.step)
    conversation = Conversation(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        run_template(args.run, loaded.tokenizer, loaded.config.objective),
        context_tokens=loaded.context_tokens,
        max_new_tokens=args.max_new_tokens,
        system=args.system,
        **sampling,
    )
    if sys.stdin.isatty():
        note(f"{args.run}, step {loaded.step}. /reset begins anew, /exit ends, Ctrl-C ends an answer.")
    num_dropped, failed = 0, False
    for line in messages():
        if line == "/reset":
            conversation.reset()
            num_dropped = 0
        elif line.startswith("/") and " " not in line and line.count("/") == 1 and sys.stdin.isatty():
            note(f"{line} is no command; there are {', '.join(COMMANDS)}.")
        else:
            try:
                answer = conversation.ask(line, lambda new: print(new, end="", flush=True))
            except UserError as error:
                note(str(error))
                failed = True
                continue
            print(flush=True)
            if answer.finish_reason == "interrupted" and not sys.stdin.isatty():
                raise KeyboardInterrupt  # a script is to end
            if answer.num_dropped > num_dropped:
                note(f"the first {answer.num_dropped} turns no longer fit and were forgotten.")
                num_dropped = answer.num_dropped
            if answer.finish_reason == "length":
                note("the answer was cut: --max-new-tokens, or the end of what the model reads.")
            elif answer.finish_reason == "interrupted":
                note("interrupted.")
    # Somebody at a terminal has read the note; a script looks at the exit code.
    return 2 if failed and not sys.stdin.isatty() else 0


def note(text: str) -> None:
    """Says something that is no answer."""
    print(f"jaxlm: {text}", file=sys.stderr, flush=True)


def messages() -> Iterator[str]:
    """Lines that are not empty, up to /exit or the end; at a terminal with a prompt and its line editing."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then has a history
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
            note("/exit or Ctrl-D ends.")
            continue
        if not line and not terminal:
            return
        line = line.strip()
        if line == "/exit":
            return
        if line:
            yield line
