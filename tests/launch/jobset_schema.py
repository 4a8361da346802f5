"""The JobSet that `jaxlm launch` writes, as JSON Schema: the API jobset.x-k8s.io/v1alpha2, strict about unknown fields.

From api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset (read 2026-11-26). The inner Job is checked against
the schema of Kubernetes itself.
"""

_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_COUNT = {"type": "integer", "minimum": 0}
_REASONS = [
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
]
_ACTIONS = [
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
]


def _object(required=(), **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = _object(["name"], name=_NAME, namespace=_NAME, labels=_TEXTS, annotations=_TEXTS)
_RULE = _object(
    ["action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": _ACTIONS},
    onJobFailureReasons={"type": "array", "items": {"enum": _REASONS}},
    onJobFailureMessagePatterns={"type": "array", "items": {"type": "string"}},
    targetReplicatedJobs={"type": "array", "items": _NAME},
)
_REPLICATED = _object(
    ["name", "template"],
    name=_NAME,
    groupName=_NAME,
    replicas=_COUNT,
    template=_object(["spec"], metadata=_object(labels=_TEXTS, annotations=_TEXTS), spec={"type": "object"}),
    dependsOn={
        "type": "array",
        "items": _object(["name", "status"], name=_NAME, status={"enum": ["Ready", "Complete"]}),
    },
)
JOBSET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_METADATA,
    spec=_object(
        ["replicatedJobs"],
        replicatedJobs={"type": "array", "minItems": 1, "items": _REPLICATED},
        network=_object(
            enableDNSHostnames={"type": "boolean"},
            subdomain=_NAME,
            publishNotReadyAddresses={"type": "boolean"},
        ),
        successPolicy=_object(
            ["operator"],
            operator={"enum": ["All", "Any"]},
            targetReplicatedJobs={"type": "array", "items": _NAME},
        ),
        failurePolicy=_object(
            maxRestarts=_COUNT,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={"type": "array", "maxItems": 20, "items": _RULE},
        ),
        suspend={"type": "boolean"},
        coordinator=_object(["replicatedJob"], replicatedJob=_NAME, jobIndex=_COUNT, podIndex=_COUNT),
        managedBy={"type": "string"},
        ttlSecondsAfterFinished=_COUNT,
    ),
)
