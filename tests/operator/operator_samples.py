"""A TrainingJob as the API server hands it out, for tests to vary."""

from __future__ import annotations

import copy
from typing import Any

JOB: dict[str, Any] = {
    "apiVersion": "holdfast.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {
        "name": "gpt",
        "namespace": "team",
        "uid": "0a1b2c3d-0000-4000-8000-000000000000",
        "generation": 3,
        "resourceVersion": "7",
    },
    "spec": {
        "workers": {
            "replicas": 2,
            "processesPerPod": "auto",
            "template": {
                "metadata": {"labels": {"app": "gpt"}, "annotations": {"note": "kept"}},
                "spec": {
                    "containers": [
                        {
                            "name": "trainer",
                            "image": "trainer:1",
                            "command": ["python", "train.py"],
                            "args": ["--steps", "10"],
                            "env": [{"name": "PYTHONPATH", "value": "/app"}, {"name": "SEED", "value": "1"}],
                        }
                    ]
                },
            },
        },
        "checkpoint": {
            "memory": {"size": "64Mi", "slots": 3},
            "stores": [
                {
                    "name": "pvc",
                    "persistentVolumeClaim": {"claimName": "ckpt", "subPath": "runs"},
                    "every": {"steps": 5},
                    "keep": 2,
                },
                {"name": "s3", "url": "s3://bucket/prefix", "secretRef": {"name": "s3"}, "every": {"seconds": 30}, "keep": 3},
            ],
        },
        "runPolicy": {"startupDeadlineSeconds": 600, "hangDeadlineSeconds": 300},
        "failurePolicy": {"restarts": {"limit": 20, "window": "1h", "noProgressLimit": 3}},
    },
}


def job(**spec: Any) -> dict[str, Any]:
    """A fresh copy; keyword arguments replace parts of the spec."""
    body = copy.deepcopy(JOB)
    body["spec"].update(spec)
    return body


def trainer(body: dict[str, Any]) -> dict[str, Any]:
    """Its trainer container, to be changed in place."""
    container: dict[str, Any] = body["spec"]["workers"]["template"]["spec"]["containers"][0]
    return container
