"""Objects for Kubernetes: one Indexed Job whose first pods train and whose last pods sample. No operator is needed.

The master's address comes from a headless service, the configuration from a ConfigMap, and run_dir from a claim that
all nodes may mount. Kubernetes 1.31 or newer. Left out: images, queues (Kueue), networks beyond the pods' own, and
other files that the configuration names: a relative path is looked up in the claim.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from grpo_math import config
from grpo_math.launching.layout import SAVE_S, Layout, urls
from grpo_math.launching.local import PATIENCE, torchrun
from grpo_math.types import UserError

FOLDER = "/etc/grpo-math"  # where the ConfigMap is mounted
WORK = "/mnt/runs"  # where the claim is: run_dir and other relative paths are looked up in there


class _Dumper(yaml.SafeDumper):
    """Scripts and files as blocks, as people write them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def kubernetes_file(cfg: config.Common, layout: Layout, command: str) -> str:
    """The objects in one YAML file. command: how it was made, for its comment."""
    layout, files = _carried(cfg, layout)
    objects: list[dict[str, Any]] = [
        _config_map(layout, files),
        _service(layout),
        *([_policy(layout)] if layout.server_nodes else []),
        _job(layout),
    ]
    namespace = {"namespace": layout.namespace} if layout.namespace else {}
    for one in objects:
        one["metadata"] |= namespace
    head = (
        f"# {command}\n# run_dir={cfg.run_dir} lies in the claim {layout.claim}, mounted at {WORK}. Start: kubectl "
        f"apply -f FILE; once more after an end: kubectl delete job {layout.name} first\n"
    )
    texts = [yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=120) for one in objects]
    return head + "---\n".join(texts)


def _names(layout: Layout) -> dict[str, str]:
    return {"app.kubernetes.io/name": "grpo-math", "app.kubernetes.io/instance": layout.name}


def _metadata(layout: Layout, name: str) -> dict[str, Any]:
    return {"name": name, "labels": _names(layout)}


def _carried(cfg: config.Common, layout: Layout) -> tuple[Layout, dict[str, str]]:
    """What the pods cannot find in an image: the configuration, and the DeepSpeed JSON that it may name."""
    files, json_path = {layout.path.name: _plain(layout.path)}, cfg.backend.deepspeed.config
    if cfg.backend.name == "deepspeed" and json_path:
        if not Path(json_path).is_file():
            raise UserError(
                f"backend.deepspeed.config={json_path}: there is no such file here; give one, or leave it out"
            )
        files[Path(json_path).name] = _plain(Path(json_path))
        override = f"backend.deepspeed.config={FOLDER}/{Path(json_path).name}"
        layout = replace(layout, overrides=(*layout.overrides, override))
    return layout, files


def _plain(path: Path) -> str:
    """Without blanks at the ends of lines, which YAML could not show as a block."""
    return "\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n"


def _config_map(layout: Layout, files: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(layout, layout.name),
        "data": files,
    }


def _service(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(layout, layout.name),
        "spec": {
            "clusterIP": "None",
            "selector": _names(layout),
            "publishNotReadyAddresses": True,  # the ranks look for each other before any is ready
            "ports": [{"name": "master", "port": layout.port}],
        },
    }


def _policy(layout: Layout) -> dict[str, Any]:
    """The servers trust whoever asks: nobody but the run's own pods may."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(layout, layout.name),
        "spec": {
            "podSelector": {"matchLabels": _names(layout)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": _names(layout)}}]}],
        },
    }


def _job(layout: Layout) -> dict[str, Any]:
    pods = layout.nodes + layout.server_nodes
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 4 * pods,  # one pod that fails takes the others with it
        "podFailurePolicy": {
            "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
    }
    if layout.server_nodes:  # servers have no end of their own
        spec["successPolicy"] = {"rules": [{"succeededIndexes": f"0-{layout.nodes - 1}"}]}
    spec["template"] = {"metadata": {"labels": _names(layout)}, "spec": _pod(layout)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(layout, layout.name),
        "spec": spec,
    }


def _pod(layout: Layout) -> dict[str, Any]:
    gpus, cpus = {"nvidia.com/gpu": layout.gpus}, {"cpu": layout.gpus * layout.cpus_per_gpu}
    container = {
        "name": "grpo-math",
        "image": layout.image,
        "command": ["bash", "-c", _script(layout)],
        "workingDir": WORK,
        "env": [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "HF_HOME", "value": f"{WORK}/huggingface"},
        ],
        "ports": [{"name": "master", "containerPort": layout.port}],
        "resources": {"limits": gpus, "requests": gpus | cpus},
        "volumeMounts": [
            {"name": "work", "mountPath": WORK},
            {"name": "config", "mountPath": FOLDER},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    return {
        "subdomain": layout.name,  # NAME-INDEX.NAME is then a pod's address
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVE_S + 30,
        "containers": [container],
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": layout.claim}},
            {"name": "config", "configMap": {"name": layout.name}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL's and vLLM's, for which the usual 64 MiB are few
        ],
    }


def _script(layout: Layout) -> str:
    where = f"{FOLDER}/{layout.path.name}"
    index = '"$JOB_COMPLETION_INDEX"'
    lines = [*layout.setup.splitlines(), PATIENCE]
    more = []
    if layout.server_nodes:
        servers = [f"{layout.name}-{i}.{layout.name}" for i in range(layout.nodes, layout.nodes + layout.server_nodes)]
        more = [shlex.quote(f"rollout.server.urls=[{','.join(urls(servers, layout.servers_per_node))}]")]
        serve = layout.serve(*more, "--host 0.0.0.0", config_path=where)
        lines.append(f"if [ {index} -ge {layout.nodes} ]; then\n  exec python {serve}\nfi")
    master = f"{layout.name}-0.{layout.name}"
    lines.append(f"exec {torchrun(layout, index, master)} {layout.train(*more, config_path=where)}")
    return "\n".join(lines) + "\n"
