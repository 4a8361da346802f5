"""Executes `--on=tpu`: asks for the TPUs, waits, starts the run, shows its log, and does so again after a preemption.

Whatever exists already is used: the same command goes on where an earlier one was interrupted. The machines have
supervisors of their own, so that nothing here has to stay alive for the run to go on; but only this command asks for
new TPUs when the old ones were taken away.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxlm.launch import programs, tpu
from jaxlm.launch.job import Job
from jaxlm.launch.launches import Command
from jaxlm.launch.programs import ProgramFailed
from jaxlm.limits import MALFORMED, parse_json
from jaxlm.redact import printable
from jaxlm.types import UserError

STEADY_S = 600.0
"""A run that was up for as long has got on: restarts are counted anew."""


class Controller:
    """One queued resource, and the run on it.

    Args:
      own_command: that is to be named in messages.
      keep: whether the TPUs stay when the run is done.
      poll_s: between two looks at the state.
    """

    def __init__(
        self, pod: tpu.Pod, job: Job, own_command: str, *, keep: bool = False, poll_s: float = tpu.POLL_S
    ):
        self._pod, self._job, self._own, self._keep, self._poll_s = pod, job, own_command, keep, poll_s
        self._shown_bytes = 0

    def up(self) -> int:
        """Returns the exit code of the run.

        Errors: UserError that says what exists, and how to go on or be rid of it.
        """
        steps = tpu.prepare(
            self._pod, self._job
        )  # a wheel that is not there is said before anything is asked for
        self._check_bucket()
        with self._what_is_left():
            lost = 0
            while True:
                self._provide()
                for step in steps:
                    self._do(step)
                self._shown_bytes = 0
                began = time.monotonic()
                code = self._run()
                if code is not None:
                    return self._finish(code)
                lost = 1 if time.monotonic() - began >= STEADY_S else lost + 1
                if lost > self._pod.target.restarts_in_a_row:
                    raise UserError(
                        f"The TPUs of {self._pod.name} were taken away {lost} times in a row within ten "
                        "minutes. Try another "
                        "zone, or capacity: on-demand."
                    )
                most = self._pod.target.restarts_in_a_row
                self._say(f"the TPUs were taken away (restart {lost} of {most}); asking for new ones")

    def state(self) -> str | None:
        """Of the queued resource; None: there is none."""
        return self._described()[0]

    def _described(self) -> tuple[str | None, dict[str, Any]]:
        try:
            text = programs.capture("Looking at the queued resource", self._pod.describe(as_json=True))
        except ProgramFailed as error:
            if re.search(rf"queuedResources/{re.escape(self._pod.name)}\b.*not found", error.said, re.S):
                return None, {}
            raise
        try:
            found = parse_json(text)
            return str(found["state"]["state"]), found
        except MALFORMED as error:
            raise UserError(
                f"gcloud described {self._pod.name} in a form that is not understood ({error})."
            ) from None

    def _provide(self) -> None:
        """Sees to it that the queued resource is active."""
        state, found = self._described()
        if state == "FAILED":
            raise UserError(f"The queued resource {self._pod.name} is FAILED: {_failure(found)}.")
        if state in tpu.ENDED:
            self._say(
                f"{self._pod.name} is {state}: its TPUs were taken away; it is deleted and asked for again"
            )
            self._do(self._pod.delete())
            state = None
        if state is None:
            self._do(self._pod.create())
        else:
            self._check_same(found)
            self._say(f"{self._pod.name} is there already, {state}")
        before = None
        while True:
            state, found = self._described()
            if state != before:
                self._say(f"{self._pod.name} is {state or 'not there yet'}")
                before = state
            if state == "ACTIVE":
                return
            if state in tpu.ENDED:
                raise UserError(f"The queued resource {self._pod.name} became {state}: {_failure(found)}.")
            time.sleep(self._poll_s)

    def _check_same(self, found: dict[str, Any]) -> None:
        """UserError for a queued resource of this name with other machines."""
        nodes = found.get("tpu", {}).get("nodeSpec", [])
        kinds = {node.get("node", {}).get("acceleratorType") for node in nodes} - {None}
        wanted = self._pod.machines.accelerator_type
        if kinds and kinds != {wanted}:
            raise UserError(
                f"A queued resource {self._pod.name} is there already, with {', '.join(sorted(kinds))} "
                f"and not {wanted}: give "
                "another `name`."
            )

    def _check_bucket(self) -> None:
        """Asks for the bucket before it asks for TPUs: the answer takes a second, and not an hour in the queue."""
        match = re.match(r"gs://[^/]+", self._job.workdir or "")
        if match:
            programs.capture(
                f"Looking at {match[0]}",
                ("gcloud", "storage", "buckets", "describe", match[0], "--format=value(name)"),
            )

    def _run(self) -> int | None:
        """Starts the run and shows its log; returns its exit code, or None when the TPUs are gone."""
        self._do(tpu.start(self._pod, self._job))
        while True:
            self._follow()
            try:
                text = (
                    programs.capture("Asking how the run ended", tpu.code_of(self._pod).argv)
                    .strip()
                    .splitlines()
                )
                answer = text[-1] if text else ""
            except ProgramFailed as error:
                if self.state() != "ACTIVE":
                    return None
                self._say(
                    f"the first machine does not answer ({error.said.strip().splitlines()[-1:]}); trying again"
                )
                time.sleep(self._poll_s)
                continue
            if re.fullmatch(r"\d{1,3}", answer):
                return int(answer)
            if answer == "lost":
                self._say("the machines were started anew; starting the run again")
                self._do(tpu.start(self._pod, self._job))
            else:
                time.sleep(min(self._poll_s, 5))

    def _follow(self) -> None:
        """Shows the log from where it was left, until the connection or the run ends."""
        argv = tpu.follow(self._pod, self._shown_bytes).argv
        programs.check_installed(argv)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), 1 << 16):
                self._shown_bytes += len(chunk)
                sys.stdout.write(printable(chunk.decode(errors="replace")))
                sys.stdout.flush()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise

    def _finish(self, code: int) -> int:
        self._say(f"the run ended with code {code}")
        if code == 0 and not self._keep:
            self._do(self._pod.delete())
            return code
        if code != 0:
            self._do(tpu.stop(self._pod))
        self._say(f"{self._pod.name} is kept, and costs money: {self._delete_command} deletes it")
        return code

    @property
    def _delete_command(self) -> str:
        return f"`{shlex.join(self._pod.delete().argv)}`"

    @contextlib.contextmanager
    def _what_is_left(self) -> Iterator[None]:
        """Adds to an error what exists, and the way on and the way out."""
        try:
            yield
        except KeyboardInterrupt:
            self._say(
                f"left alone: what was started goes on. The same command comes back to it; "
                f"{self._delete_command} ends it"
            )
            raise
        except UserError as error:
            try:
                state, found = self._described()
            except UserError:
                raise error from None  # nothing can be asked
            if state is None:
                raise UserError(f"{error} Nothing is left behind.") from None
            nodes = [str(node.get("nodeId", "")) for node in found.get("tpu", {}).get("nodeSpec", [])]
            named = f" with {', '.join(filter(None, nodes))}" if any(nodes) else ""
            raise UserError(
                f"{error} What exists: the queued resource {self._pod.name}, {state}{named}. "
                f"{self._delete_command} deletes it; "
                f"`{self._own}` goes on with it."
            ) from None

    def _do(self, command: Command) -> None:
        self._say(command.why)
        programs.show(command.why.capitalize(), command.argv, command.stdin)

    def _say(self, line: str) -> None:
        print(f"jaxlm launch: {line}", file=sys.stderr, flush=True)


def _failure(found: dict[str, Any]) -> str:
    """Why a queued resource failed, as it says itself."""
    state = found.get("state", {})
    data = next((value for key, value in state.items() if key.endswith("Data") and value), {})
    error = data.get("error", {}) if isinstance(data, dict) else {}
    message = str(error.get("message") or state.get("stateInitiator") or "it does not say why")
    way = programs.explain("It", ("gcloud",), 1, f"ERROR: {message}")
    return str(way).removeprefix("It failed: ").rstrip(".")
