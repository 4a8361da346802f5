"""What names have to look like, by the rules of the platforms: none of them can be more than a name to a shell."""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """For the values of one key of a target."""

    pattern: str
    """Of the whole value, in ASCII."""
    words: str
    """The same for people: "NAME has to be ..."."""

    def fits(self, value: object) -> bool:
        """Whether a value is a text of that form."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII) is not None


_DNS = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_DNS_63 = r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PATH = r"(/[A-Za-z0-9._=/-]*)"
_NETWORK = r"[a-z0-9]([a-z0-9/_.-]*[a-z0-9])?"

RULES = {
    "name": Rule(
        rf"(?=.{{1,40}}$){_DNS}",
        "lower case letters, digits and dashes, at most 40, a letter first",
    ),
    "zone": Rule(r"[a-z]+-[a-z]+\d+-[a-z]", "a zone of Google Cloud, such as us-west4-a"),
    "project": Rule(
        r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]",
        "the ID of a project of Google Cloud: 6 to 30 lower case letters, digits and dashes (not its name, which may "
        "have spaces)",
    ),
    "cluster": Rule(rf"(?=.{{1,63}}$){_DNS}", "the name of a GKE cluster"),
    "namespace": Rule(_DNS_63, "the name of a Kubernetes namespace"),
    "queue": Rule(_DNS_63, "the name of a LocalQueue of Kueue"),
    "service_account": Rule(
        r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(@[a-z0-9.-]+)?",
        "an e-mail address of Google Cloud, or on GKE the name of a Kubernetes service account",
    ),
    "reservation": Rule(r"[a-z0-9]([a-z0-9/-]*[a-z0-9])?", "the name of a reservation"),
    "network": Rule(_NETWORK, "the name of a network"),
    "subnetwork": Rule(_NETWORK, "the name of a subnetwork"),
    "image": Rule(
        r"[a-z0-9]([a-zA-Z0-9._/:-]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?",
        "the address of a container image, such as us-docker.pkg.dev/my-project/jaxlm/jaxlm:0.1.0",
    ),
    "package": Rule(
        r"jaxlm(\[[a-z0-9,-]+\])?((==|>=|~=)[0-9][0-9a-z.]*)?",
        "a version of jaxlm on a package index, such as jaxlm==0.1.0",
    ),
    "bucket": Rule(
        rf"gs://[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9]{_PATH}?|s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_PATH}?|{_PATH}",
        "gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a folder of a disk that all machines share",
    ),
    "partition": Rule(r"[A-Za-z0-9_][A-Za-z0-9_,.-]*", "the name of a Slurm partition"),
    "account": Rule(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "the name of a Slurm account"),
    "time": Rule(
        r"\d+(-\d{1,2}(:\d\d){0,2})?|(\d+-)?\d{1,2}(:\d\d){1,2}",
        "a time limit of Slurm, such as 24:00:00 or 7-00:00:00",
    ),
    "address": Rule(
        r"(https?|ray)://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._/-]*)?",
        "the address of a Ray cluster, such as http://127.0.0.1:8265",
    ),
    "runtime_version": Rule(r"[a-z0-9][a-z0-9.-]*", "the software of a TPU VM, such as v2-alpha-tpuv5-lite"),
    "infra": Rule(
        r"[a-z0-9][A-Za-z0-9._/:@*-]*", "infrastructure of SkyPilot, such as gcp/us-west4/us-west4-a or aws"
    ),
}
"""Key of a target -> its rule."""
