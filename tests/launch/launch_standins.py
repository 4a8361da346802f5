"""Stand-ins for gcloud and others, for tests of `jaxlm launch`.

The gcloud here keeps a queued resource in a folder: its state, and a home for each machine, in which what is sent over
ssh is really run. What happens when is written in files beside it: see GCLOUD.
"""

import json
import os
import stat
import sys
import textwrap
from pathlib import Path

GCLOUD = """
import json, os, subprocess, sys
from pathlib import Path

here = Path(os.environ["STANDIN"])
argv = sys.argv[1:]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(argv) + "\\n")
flags = dict(arg[2:].partition("=")[::2] for arg in argv if arg.startswith("--"))
words = [arg for arg in argv if not arg.startswith("--")]
verb = words[3] if words[:3] == ["compute", "tpus", "queued-resources"] else " ".join(words[:3])
state = here / "state"           # of the queued resource; missing: there is none
coming = here / "coming"         # states that describe shows one after the other, the last for good
refusals = here / f"refuse-{verb}"  # what the verb says instead of working
if refusals.exists():
    print(refusals.read_text(), file=sys.stderr)
    sys.exit(1)
if verb == "create":
    state.write_text("WAITING_FOR_RESOURCES")
    (here / "kind").write_text(flags["accelerator-type"])
    (here / "nodes").write_text(flags.get("node-count", "1"))
    rounds = here / "rounds"     # one list of states for each creation
    if rounds.exists():
        left = json.loads(rounds.read_text())
        coming.write_text(json.dumps(left.pop(0)))
        rounds.write_text(json.dumps(left))
    else:
        coming.write_text('["WAITING_FOR_RESOURCES", "ACTIVE"]')
elif verb == "describe":
    if not state.exists():
        print(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource "
              f"'projects/p/locations/z/queuedResources/{words[4]}' was not found", file=sys.stderr)
        sys.exit(1)
    left = json.loads(coming.read_text()) if coming.exists() else []
    if left:
        state.write_text(left.pop(0))
        coming.write_text(json.dumps(left))
    name = state.read_text()
    found = {"name": words[4], "state": {"state": name}, "tpu": {"nodeSpec": [
        {"nodeId": words[4], "node": {"acceleratorType": (here / "kind").read_text()}}]}}
    if name == "FAILED":
        found["state"]["failedData"] = {"error": {"code": 8, "message": (here / "failure").read_text()}}
    print(json.dumps(found) if flags["format"] == "json" else name)
elif verb == "delete":
    state.unlink(missing_ok=True)
    for home in here.glob("home-*"):
        home.rename(here / f"gone-{len([*here.glob('gone-*')])}-{home.name}")
elif verb in ("ssh", "scp"):
    if not state.exists() or state.read_text() != "ACTIVE":
        print("ERROR: (gcloud.ssh) the machine does not answer", file=sys.stderr)
        sys.exit(255)
    if "tail" in flags.get("command", "") and (here / "cut").exists():
        (here / "cut").unlink()
        print("what was shown before the connection was cut", flush=True)
        sys.exit(255)
    hosts = int((here / "hosts").read_text()) * int((here / "nodes").read_text())
    for index in range(hosts if flags["worker"] == "all" else 1):
        home = here / f"home-{index}"
        home.mkdir(exist_ok=True)
        if verb == "scp":
            source, target = words[4], words[5].partition(":")[2]
            (home / target).write_bytes(Path(source).read_bytes())
            continue
        done = subprocess.run(["bash", "-c", flags["command"]], cwd=home, env=os.environ | {"HOME": str(home)})
        if done.returncode:
            print(f"ERROR: (gcloud.ssh) [/usr/bin/ssh] exited with return code [{done.returncode}].", file=sys.stderr)
            sys.exit(done.returncode)
elif verb == "storage buckets describe":
    print("my-bucket")
"""
UV = r"""
import os, sys
from pathlib import Path

if sys.argv[1] == "venv":
    program = Path(sys.argv[-1]) / "bin" / "jaxlm"
    program.parent.mkdir(parents=True)
    (program.parent / "python").symlink_to(sys.executable)
    program.write_text("#!/bin/sh\nexec " + sys.executable + " $STANDIN/on_machine.py \"$@\"\n")
    program.chmod(0o755)
else:
    print("installed", *sys.argv[5:])
"""


def install(folder: Path, name: str, program: str) -> None:
    """A program of Python in folder/bin."""
    path = folder / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(program)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def write_cloud(folder: Path, *, hosts: int, jaxlm: str) -> None:
    """A cloud in a folder.

    Args:
      hosts: machines of a slice.
      jaxlm: the program that stands for jaxlm on them, in Python.
    """
    install(folder, "gcloud", GCLOUD)
    install(folder, "uv", UV)
    (folder / "hosts").write_text(str(hosts))
    (folder / "on_machine.py").write_text(textwrap.dedent(jaxlm))


def calls(folder: Path) -> list[list[str]]:
    """What gcloud was called with."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def path_with(folder: Path) -> str:
    """$PATH in which only the stand-ins, and what every machine has, are found."""
    return os.pathsep.join([str(folder / "bin"), "/usr/bin", "/bin"])
