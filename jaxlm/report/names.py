"""What the names in the event log mean: EVENTS, the words of `event`, and METRICS, the keys of steps and evaluations.

The documentation's page on the event log is made from these tables, and tests hold them against the code and a run.
"""

EVENTS = {
    "start": "a process begins or continues the run: what was decided (mesh, parameters, kernels, versions)",
    "plan": "what the run was expected to take: FLOPs, memory, tokens and epochs of each source",
    "startup": "seconds from the start of the process to the first step, by what they went to",
    "span": "what something besides the steps took: `kind`, `seconds`, and `compile_s` of them",
    "step": "one finished step, with the metrics below; the later one counts where a resumed run repeats a step",
    "eval": "held-out scores",
    "scores": "tables of the last evaluation of a classifier: `name`, `scores`",
    "text": "a text that the model wrote: `name`, `text`",
    "save": "a checkpoint was begun",
    "memory": "the peak of devices and process, in bytes",
    "profile": "a profile was written: `folder`, `first` and `last` step",
    "bad_step": "a step whose update was skipped: the rows of its batch by source, the gradients that were not finite",
    "rollback": "the run went back `to` a step's weights and on behind step `step`, for the `count`th time",
    "replay": "a bad step was repeated by `jaxlm replay`, which prints it (its own output, not the log of the run)",
    "data_retry": "a read failed in a way that may pass, and was tried again",
    "data_stall": "a read takes longer than a minute",
    "message": "a line for people: `text`",
    "warning": "a line that people should not miss: `text`",
    "end": "the run reached its last step: `seconds`, and the last scores",
    "failed": "the run ended with an error: `error`",
}
"""Word -> when it is written, and its own keys."""
METRICS = {
    "train/loss": "nats for each token that is trained on, the mean of the batch",
    "train/learning_rate": "of this step",
    "train/grad_norm": "of all gradients, before they are clipped",
    "train/num_tokens": "tokens that are trained on, their weights added",
    "train/num_inputs": "tokens that go through the model, where that is another number",
    "train/num_bad": "bad steps since the run began",
    "train/num_bad_in_row": "bad steps up to this one without a good one between them",
    "train/balance_loss": "of the router of a mixture of experts",
    "train/router_z_loss": "of the router of a mixture of experts",
    "train/busiest_expert": "share of the tokens that goes to the busiest expert, 1 where all have equally many",
    "perf/step_time_s": "seconds a step, the mean since the last line; without evaluations and saves",
    "perf/compile_s": "seconds of compiling since the last line",
    "perf/tokens_per_s": "of all devices together",
    "perf/flops_per_s": "of the model, of all devices together; what rematerialisation repeats is not counted",
    "perf/mfu": "the share of the devices' peak in that; on known chips alone",
    "perf/stall_share": "share of the time in which the step waited for data",
    "data/<source>/tokens": "read of a source since the run began",
    "data/<source>/epochs": "that in epochs of the source",
    "data/num_retries": "reads that were tried again since the run began",
    "data/num_stalls": "reads that took longer than a minute since the run began",
    "eval/loss": "nats for each held-out token of all sources",
    "eval/<source>/loss": "of one source",
    "eval/<source>/perplexity": "exp of the loss",
    "eval/<source>/bits_per_byte": "the loss in bits, for each byte of text: comparable between tokenizers",
    "eval/<source>/accuracy": "share of the texts whose label is right, of a classifier",
    "batch_hash": "of the rows of the step: equal on any number of processes",
}
"""Name -> meaning and unit."""
