"""The description of where to run: a YAML file, flags, or both; a flag wins over the file.

    accelerator: v5e-256
    zone: us-west4-a
    project: my-project
    bucket: gs://my-bucket/runs
    wheel: dist/jaxlm-0.1.0-py3-none-any.whl

Every value is checked against the rules of the platforms for names, so that none of them can be more than a name: a
space, a quote or a `$` in one is refused here. Values of secrets are never read: a target names them.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice
from jaxlm.launch import accelerators
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.names import RULES
from jaxlm.launch.supervisor import Policy
from jaxlm.limits import short
from jaxlm.plan import tables
from jaxlm.redact import SECRET_KEY, redact
from jaxlm.types import UserError

CAPACITIES = ("on-demand", "spot", "reserved")
CODE = ("image", "wheel", "checkout", "package")
"""Where the machines get jaxlm from; a target has one of them."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_STORE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?", re.ASCII)
RESERVED = re.compile(r"(JAX_(COORDINATOR|NUM_PROCESSES|PROCESS_ID)|MEGASCALE_|SLURM_|SKYPILOT_|TPU_WORKER_)")
"""Variables of the environment that say who is who: the platform sets them."""


@dataclass(frozen=True)
class Target:
    """Where to run. None: not given."""

    accelerator: str | None = None
    """Such as v5e-256, v5p-128, v5e:16x16, h100x16."""
    topology: str | None = None
    """Shape of a slice where the name leaves several: 4x4x8."""
    slices: int = 1
    """Of TPUs, connected over the data-center network."""
    name: str = "jaxlm"
    """Of what is made: queued resource, JobSet, job. A second run at the same time needs another."""
    zone: str | None = None
    project: str | None = None
    capacity: str = "on-demand"
    """on-demand, spot (may be preempted), reserved."""
    reservation: str | None = None
    """Name of the reservation on GKE, through xpk."""
    bucket: str | None = None
    """Folder for runs on storage that every machine reaches: without a --workdir, it is BUCKET/NAME."""
    image: str | None = None
    """Container image that has jaxlm: launch/Dockerfile."""
    wheel: str | None = None
    """File on this machine, copied and installed."""
    checkout: str | None = None
    """Folder with the source on this machine, copied and installed. On Slurm and Ray: its place on the shared disk."""
    package: str | None = None
    """Installed from a package index: jaxlm==0.1.0."""
    service_account: str | None = None
    """The machines' identity."""
    network: str | None = None
    subnetwork: str | None = None
    internal_ips: bool = False
    """No external addresses; ssh then goes over internal ones."""
    runtime_version: str | None = None
    """Software of TPU VMs; default: that of the chip in platforms.yaml."""
    cluster: str | None = None
    """Of GKE."""
    namespace: str | None = None
    queue: str | None = None
    """LocalQueue of Kueue."""
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    """Limit of a Slurm job; at its end the run is saved, and the job queued again."""
    address: str | None = None
    """Of a Ray cluster."""
    infra: str | None = None
    """Of SkyPilot; default: the zone, or wherever it is cheapest."""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str | None] = field(default_factory=dict)
    """Variable -> name in the platform's store of secrets (None: the variable is there already). Never a value."""
    max_restarts: int | None = None
    """In a row, without a new checkpoint in between (10); of a JobSet on GKE, in all (100)."""

    def __post_init__(self):
        for key, rule in RULES.items():
            value = getattr(self, key)
            if value is not None and not rule.fits(value):
                raise UserError(f"{key}={_shown(value)} has to be {rule.words}.")
        for key in ("accelerator", "topology", "wheel", "checkout"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
                raise UserError(f"{key}={_shown(value)} has to be a text without control characters.")
        for key in ("slices", "max_restarts"):
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < 0):
                raise UserError(f"{key}={_shown(value)} has to be a whole number, 0 or more.")
        if type(self.internal_ips) is not bool:
            raise UserError(f"internal_ips={_shown(self.internal_ips)} has to be true or false.")
        check_choice("capacity", self.capacity, CAPACITIES)
        given = [key for key in CODE if getattr(self, key) is not None]
        if len(given) > 1:
            raise UserError(
                f"{' and '.join(given)} are given: the machines get jaxlm from one of them. Leave the others out."
            )
        _check_environment(self.environment, self.secrets)

    @property
    def restarts_in_a_row(self) -> int:
        """`max_restarts` of supervisors."""
        return Policy().max_restarts if self.max_restarts is None else self.max_restarts

    @property
    def code(self) -> str | None:
        """Which one of `CODE` there is."""
        return next((key for key in CODE if getattr(self, key) is not None), None)

    def need(self, platform: str, *keys: str) -> None:
        """UserError for the first of these keys that is missing, and that platform cannot do without."""
        for key in keys:
            if getattr(self, key) is None:
                raise UserError(
                    f"{key} is missing: --on={platform} needs it. Write `{key}: ...` into the target, or give "
                    f"--{key.replace('_', '-')}=...; it has to be {RULES[key].words if key in RULES else 'a text'}."
                )

    def need_code(self, platform: str, *kinds: str) -> str:
        """Which of these kinds of code the target has. Errors: UserError where it has none, or another."""
        if self.code not in kinds:
            given = f"{self.code} is given" if self.code else "none is given"
            raise UserError(
                f"--on={platform} takes jaxlm from {' or '.join(kinds)}, but {given}: say which in the target."
            )
        return str(self.code)

    def machines(self, platform: str) -> Accelerator:
        """The machines. Errors: UserError where none are named, or there are no such."""
        if self.accelerator is None:
            raise UserError(
                f"accelerator is missing: --on={platform} needs it. Write `accelerator: v5e-256` (or "
                "v5p-128, h100x16, ...) "
                "into the target, or give --accelerator=..."
            )
        return accelerators.parse(self.accelerator, self.topology, self.slices)


def _shown(value: Any) -> str:
    return short(redact(value) if isinstance(value, str) else value)


def _check_environment(environment: Any, secrets: Any) -> None:
    """Names that are names, values that are texts, and no secret among them."""
    for key, value in (("environment", environment), ("secrets", secrets)):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} has to be a mapping, NAME: value; it is {_shown(value)}.")
        for name in value:
            if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
                raise UserError(
                    f"{key}: {_shown(name)} is no name of a variable: letters, digits and _, no digit first."
                )
            if RESERVED.match(name):
                raise UserError(f"{key}.{name}: the platform sets this variable. Leave it out.")
    for name, value in environment.items():
        if not isinstance(value, str) or not all(c.isprintable() for c in value):
            raise UserError(f"environment.{name} has to be one line of text; quote numbers and true/false.")
        if SECRET_KEY.search(name) or redact(value, {}) != value:
            raise UserError(
                f"environment.{name} looks like a secret, and what is launched is printed and stored. Put it into the "
                f"platform's store of secrets, and its name there under secrets: `{name}: NAME-IN-THE-STORE`."
            )
        if name in secrets:
            raise UserError(f"{name} stands under environment and under secrets: leave one of them out.")
    for name, store in secrets.items():
        if store is not None and (
            not isinstance(store, str) or not _STORE.fullmatch(store) or redact(store, {}) != store
        ):
            raise UserError(
                f"secrets.{name} has to be the name of a secret in the platform's store (on GKE "
                "SECRET/KEY), not its value."
            )


KEYS = tuple(item.name for item in dataclasses.fields(Target))


def read_target(path: str | os.PathLike | None, changes: Mapping[str, Any]) -> Target:
    """The target of a file, with changes (of flags) on top; without a file, of the changes alone.

    Paths in the file (wheel, checkout) are relative to it. Errors: UserError that names file, key and rule.
    """
    values: dict[str, Any] = {}
    if path is not None:
        table = tables.read(Path(path), (), KEYS)
        values = {key: _plain(key, value, str(path)) for key, value in table.items() if value is not None}
        for key in ("wheel", "checkout"):
            if isinstance(values.get(key), str):
                values[key] = os.path.normpath(
                    os.path.join(os.path.dirname(path), os.path.expanduser(values[key]))
                )
    if changes_code := [key for key in CODE if key in changes]:
        values = {key: value for key, value in values.items() if key not in CODE or key in changes_code}
    for key in ("environment", "secrets"):
        if key in changes:
            values[key] = {**values.get(key, {}), **changes[key]}
    values.update({key: value for key, value in changes.items() if key not in ("environment", "secrets")})
    try:
        return Target(**values)
    except UserError as error:
        raise error if path is None else UserError(f"{os.fspath(path)}: {error}") from None


def _plain(key: str, value: Any, path: str) -> Any:
    """A value of YAML as the key wants it: a list of secrets is a mapping to None; times and numbers become text."""
    if key == "secrets" and isinstance(value, Sequence) and not isinstance(value, str):
        return (
            {name: None for name in value if isinstance(name, str)}
            if all(isinstance(n, str) for n in value)
            else value
        )
    if key == "environment" and isinstance(value, Mapping):
        return {name: str(one) if type(one) in (int, float) else one for name, one in value.items()}
    if key == "time" and type(value) is int:
        # YAML 1.1 reads 24:00:00 as a number in base 60.
        raise UserError(f'{path}: time has to be quoted, time: "24:00:00": YAML takes it for a number.')
    return value
