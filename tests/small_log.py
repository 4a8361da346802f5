"""The event log of a run that never was, as small as shows everything."""

import math

from jaxlm.report.events import EventLog


def write_log(folder, num_steps=120, name="web", text="once", **more):
    folder.mkdir(parents=True, exist_ok=True)
    with EventLog(folder / "events.jsonl") as log:
        log.write("start", weights=text, model="tiny")
        log.write("plan", first_step=0, num_steps=num_steps, num_devices=1, device_kind="cpu", device_bytes=1e6,
                  sources={name: {"tokens": 8 * num_steps, "epochs": 0.5}})  # fmt: skip
        log.write("startup", seconds=1.0, restore_s=0.0, compile_s=0.25)
        for step in range(1, num_steps + 1):
            values = {"train/loss": math.nan if step == 7 else 5 - step / 100, "train/grad_norm": 1 + 1 / step,
                      "train/num_tokens": 8.0, "train/learning_rate": 1e-3}  # fmt: skip
            if step % 10 == 0:
                values |= {"perf/step_time_s": 0.01, "perf/tokens_per_s": 800.0, "perf/stall_share": 0.0,
                           f"data/{name}/tokens": 8 * step, f"data/{name}/epochs": step / 240}  # fmt: skip
            log.write("step", step=step, **values)
        for step in (60, 120):
            log.write(
                "eval",
                step=step,
                **{f"eval/{name}/loss": 4.0, f"eval/{name}/bits_per_byte": 1.5, "eval/loss": 4.0},
            )
            log.write("text", step=step, name=f"sample: {text}"[:200], text=text)
        log.write("warning", text=text)
        log.write("bad_step", step=7, kind=text, loss=math.nan)
        for event, fields in more.items():
            log.write(event, **fields)
    return folder
