"""Starting gcloud, kubectl and the like, and saying in one line what went wrong and what to do about it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from jaxlm.launch.launches import Launch, Wait
from jaxlm.redact import printable
from jaxlm.types import UserError

INSTALL = {
    "gcloud": "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install, then `gcloud auth login`",
    "kubectl": "`gcloud components install kubectl`, or https://kubernetes.io/docs/tasks/tools/",
    "xpk": "`pip install xpk`, https://github.com/AI-Hypercomputer/xpk",
    "sky": "`pip install 'skypilot[gcp]'` (or aws, kubernetes, ...), then `sky check`",
    "sbatch": "it comes with Slurm: run this on a login node of the cluster, or paste what the dry run prints there",
    "ray": "`pip install 'ray[default]'`, in the version of the cluster",
    "tar": "install tar",
}
INSTALL |= dict.fromkeys(("squeue", "scancel", "scontrol", "srun"), INSTALL["sbatch"])
_REASONS: tuple[tuple[str, str], ...] = (
    (r"do(?:es)? not currently have an active account|no active account|Reauthentication|invalid_grant|"
     r"could not automatically determine credentials|Application Default Credentials",
     "you are not logged in: `gcloud auth login`"),
    (r"SERVICE_DISABLED|has not been used in project|it is disabled|API \[.*\] not enabled",
     "an API is off in that project: `gcloud services enable tpu.googleapis.com` (for GKE "
     "container.googleapis.com), with "
     "--project=PROJECT"),
    (r"RESOURCE_EXHAUSTED|[Qq]uota|QUOTA",
     "the project's quota does not allow it: see `IAM & Admin > Quotas` in the console, ask for more there, or choose "
     "another zone, fewer chips or capacity: spot, which has a quota of its own"),
    (r"ZONE_RESOURCE_POOL_EXHAUSTED|no more capacity|stockout|Insufficient capacity",
     "the zone has no such machines free now: try later, or another zone"),
    (r"storage\.(objects|buckets)\.|bucket.*(?:403|does not exist|not found|denied|permission)|BucketNotFound|404.*gs://|gs://.*404",
     "the bucket is not there, or may not be used: `gcloud storage buckets describe gs://BUCKET` says "
     "which; the service account "
     "of the machines needs the role Storage Object Admin on it"),
    (r"(?:project|projects/)\S*.*(?:was not found|not found|NOT_FOUND|does not exist|invalid)|CONSUMER_INVALID|"
     r"Project .* (?:deleted|invalid)",
     "no such project for this account: `gcloud projects list` has the IDs"),
    (r"PERMISSION_DENIED|does not have permission|Permission .* denied|403|[Ff]orbidden",
     "this account may not do that: it needs the role TPU Admin (of GKE: Kubernetes Engine Developer) in "
     "the project, and "
     "Service Account User on the service account"),
    (r"User does not have|not authorized", "this account may not do that"),
    (r"ALREADY_EXISTS|already exists|AlreadyExists",
     "something of that name is there: give another `name`, or --delete that one first"),
    (r"accelerator.*(?:not found|not available|NOT_FOUND)|(?:Unknown|Invalid) accelerator",
     "that zone has no such accelerator: `gcloud compute tpus accelerator-types list --zone=ZONE` lists them"),
    (r"no matches for kind \"?JobSet",
     "the cluster has no JobSet: install it, https://jobset.sigs.k8s.io/docs/installation/"),
    (r"connection refused|Unable to connect to the server|current-context|no configuration has been provided",
     "kubectl knows of no cluster that answers: give `cluster`, `zone` and `project` in the target, or "
     "`gcloud container clusters get-credentials CLUSTER`"),
    (r"invalid partition|Invalid partition", "no such partition: `sinfo` lists them"),
    (r"Invalid account|Invalid qos|invalid account",
     "Slurm does not know this account or QOS: `sacctmgr show user $USER -s`"),
)  # fmt: skip
"""(what a program says, what to do), the more special first."""


class ProgramFailed(UserError):
    """A program ended with another code than 0."""

    def __init__(self, message: str, code: int, said: str):
        super().__init__(message)
        self.code, self.said = code, said


def check_installed(argv: Sequence[str]) -> None:
    """UserError for a program that is not there, with how to install it."""
    if shutil.which(argv[0]) is None:
        way = INSTALL.get(argv[0], "install it")
        raise UserError(
            f"{argv[0]} is not installed, or not on $PATH: {way}. Without --execute nothing but the script is printed."
        )


def explain(why: str, argv: Sequence[str], code: int, said: str) -> ProgramFailed:
    """The error of a program, from what it wrote to stderr."""
    text = printable(" ".join(said.split()))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    marked = [line for line in lines if re.match(r"(ERROR|error|Error|fatal|sbatch: error)\b", line)]
    line = printable((marked or lines[-1:] or [f"it ended with code {code} and said nothing"])[0])[
        :500
    ].rstrip(".")
    way = next((way for pattern, way in _REASONS if re.search(pattern, text)), None)
    said_so = f"{argv[0]} said: {line}."
    return ProgramFailed(f"{why} failed: {f'{way} ({said_so})' if way else said_so}", code, said)


def capture(why: str, argv: Sequence[str], stdin: str | None = None) -> str:
    """What a program prints. Errors: ProgramFailed; UserError for one that is not installed."""
    check_installed(argv)
    done = subprocess.run(
        argv, input=stdin or "", capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise explain(why, argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def show(why: str, argv: Sequence[str], stdin: str | None = None) -> None:
    """Runs a program whose output the user sees; what it writes to stderr is kept for the error as well.

    Errors: as of `capture`.
    """
    check_installed(argv)
    sys.stdout.flush()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, said = process.communicate(stdin)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        raise explain(why, argv, process.returncode, said)
    sys.stderr.write(printable(said))


def watch(argv: Sequence[str]) -> int:
    """Runs a program whose output the user sees until it ends, and returns its exit code (negative: a signal)."""
    check_installed(argv)
    sys.stdout.flush()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def execute(launch: Launch) -> int:
    """Writes the files, and runs the commands in order; ends at the first that fails.

    Errors: UserError that says what had been done already. Returns the exit code of what is watched, else 0.
    """
    for command in launch.commands:
        check_installed(command.argv)
    for file in launch.files:
        write_new(file.path, file.content)
    done: list[str] = []
    for command in launch.commands:
        assert not isinstance(command, Wait)
        print(f"# {command.why}", file=sys.stderr, flush=True)
        if command.is_watch:
            return watch(command.argv)
        try:
            show(command.why, command.argv, command.stdin)
        except ProgramFailed as error:
            before = f" Before that: {'; '.join(done)}." if done else " Nothing was started."
            raise UserError(f"{error}{before}") from None
        done.append(command.why)
    return 0


def write_new(path: str, content: str) -> None:
    """Writes a file that is not there, or has this content already. Errors: UserError for another one."""
    from jaxlm.data.files import make_folder, write_atomic

    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.read(len(content) + 1) == content:
                return
        raise UserError(
            f"{path} is there, with other content: move it away, or give another `name` in the target."
        )
    if folder := os.path.dirname(path):
        make_folder(folder)
    write_atomic(path, content.encode())
