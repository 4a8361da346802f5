"""lm-evaluation-harness with a run of jaxlm as its model.

    python -m jaxlm.run_lm_eval --model jaxlm --model_args run=runs/mine --tasks my_task --include_path tasks/

takes the flags of `lm_eval`, which by itself does not know other packages' models. What `jaxlm evaluate --tasks`
refuses (code that a task names, downloads) it does. In Python:

    from jaxlm.run_lm_eval import RunLM
    lm_eval.simple_evaluate(model=RunLM(run="runs/mine"), tasks=["my_task"])
"""

from __future__ import annotations

import os
import sys
from typing import Any

from lm_eval.api.registry import register_model

from jaxlm.evaluate.harness_model import BATCH_SIZE, JaxlmLM, OnProgress
from jaxlm.run_evaluate import open_run
from jaxlm.types import UserError


class RunLM(JaxlmLM):
    """A run as lm-eval's model."""

    def __init__(
        self,
        run: str | os.PathLike,
        step: int | str | None = None,
        mesh: str | None = None,
        max_length: int | str | None = None,
        batch_size: int | str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | str | None = None,
        max_gen_toks: int | str | None = None,
        seed: int | str = 0,
        on_progress: OnProgress | None = None,
        **others: Any,
    ):
        """Loads the weights of a run.

        Args:
          run: workdir of a training, or a folder of import-hf.
          step: of the checkpoint; None: the latest.
          mesh: `fsdp:4,tensor:2` spreads weights and rows over all devices; None: one device.
          max_length: tokens read at once; None: as many as the model was made for.
          others: what lm-eval hands to every model (device, max_batch_size), which means nothing here.

        Errors: UserError for a run that is a classifier, and a model argument that is none.
        """
        from jaxlm.infer.chat import run_template

        if unknown := [name for name in others if name not in ("device", "max_batch_size")]:
            raise UserError(
                f"model argument {unknown[0]}: jaxlm knows run, step, mesh, max_length, batch_size, add_bos_token, "
                "prefix_token_id, max_gen_toks and seed."
            )
        loaded, placing = open_run(run, None if step is None else int(step), mesh)
        more = {} if max_gen_toks is None else {"max_gen_toks": int(max_gen_toks)}
        super().__init__(
            loaded.lm,
            loaded.params,
            loaded.tokenizer,
            max_length=loaded.context_tokens if max_length is None else int(max_length),
            batch_size=batch_size or BATCH_SIZE,
            template=lambda: run_template(run, loaded.tokenizer, loaded.config.objective),
            add_bos_token=add_bos_token,
            prefix_token_id=None if prefix_token_id is None else int(prefix_token_id),
            seed=int(seed),
            placing=placing,
            on_progress=on_progress,
            **more,
        )
        self.step = loaded.step


register_model("jaxlm")(RunLM)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    # As `python -m` runs it, this module is not the one that others import.
    import jaxlm.run_lm_eval  # noqa: F401

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"jaxlm: error: {error}")
