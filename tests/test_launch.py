"""`launch`: what it refuses, what it writes, and the scripts run with stand-ins for what only a cluster has."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_math import launch_command, plan, preflight
from grpo_math.config_file import load_config
from grpo_math.launch_command import launch
from grpo_math.types import UserError

ROOT = Path(__file__).parent.parent
BASE = """\
run_dir: runs/x
model: some/model
task: arithmetic
backend: {name: deepspeed}
"""
SERVED = BASE + "rollout: {engine: vllm_server, server: {urls: ['http://localhost:8000']}}\n"
K8S: dict[str, Any] = {"k8s": True, "image": "registry.example.com/grpo-math:0.1.0", "claim": "grpo-math"}
BIG = {"nodes": 2, "gpus": 8, "server_nodes": 2}
# the committed examples, and the arguments that wrote them
EXAMPLES: list[tuple[str, str, dict[str, Any]]] = [
    ("slurm/math_32b_multinode.sbatch", "math_32b_multinode", {**BIG, "slurm": True}),
    ("slurm/math_qwen2.5-7b.sbatch", "math_qwen2.5-7b", {"gpus": 8, "slurm": True}),
    ("kubernetes/math_32b_multinode.yaml", "math_32b_multinode", {**BIG, **K8S}),
    ("kubernetes/math_qwen2.5-7b.yaml", "math_qwen2.5-7b", {"gpus": 8, **K8S}),
]  # fmt: skip
# GPUs that each file is made for
SHIPPED = [
    ("arithmetic_grpo_vllm_deepspeed", 2, 80.0),
    ("gsm8k_qwen2.5-1.5b", 1, 80.0),
    ("gsm8k_qwen2.5-1.5b_lora", 1, 24.0),
    ("math_qwen2.5-7b", 8, 80.0),
    ("math_32b_multinode", 16, 80.0),
    ("code_qwen2.5-coder-7b", 8, 80.0),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(BASE)
    (tmp_path / "served.yaml").write_text(SERVED)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], path: str, *overrides: str, **options: Any) -> str:
    assert launch(Path(path), overrides, print_only=True, **options) == 0
    return capsys.readouterr().out


def is_a_script(text: str) -> None:
    result = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


# What is refused


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ([], {"nodes": 0}, "--nodes 0: there must be one at least"),
        ([], {"gpus": 0}, "--gpus 0: there must be one at least"),
        ([], {"port": 80}, "--port 80: is no port that a user may open"),
        (
            ["backend.name=torch"],
            {"gpus": 2},
            "backend.name=torch trains in one process, .* set backend.name=deepspeed",
        ),
        ([], {"nodes": 2}, "--nodes 2 needs a launcher that reaches the others"),
        ([], {"slurm": True, "k8s": True}, "--slurm and --k8s: a run has one launcher"),
        (
            ["rollout.engine=vllm", "rollout.vllm.tensor_parallel=3"],
            {"gpus": 4},
            "rollout.vllm.tensor_parallel=3 does not divide .* = 4 ranks; set rollout.vllm.tensor_parallel=2",
        ),
        (
            ["rollout.engine=vllm", "rollout.vllm.tensor_parallel=4"],
            {"nodes": 2, "gpus": 2, "slurm": True},
            "over machines, --gpus being 2; set rollout.vllm.tensor_parallel=2",
        ),
        ([], {"server_nodes": 1, "slurm": True}, "and rollout.engine=hf uses none; set rollout.engine=vllm_server"),
        ([], {"ssh": "a,b c", "nodes": 2}, "'b c' is no name of a host"),
        ([], {"ssh": "a,-oProxyCommand=x", "nodes": 2}, "'-oProxyCommand=x' is no name of a host"),
        ([], {"ssh": "a,a", "nodes": 2}, "--ssh: a is named twice"),
        ([], {"ssh": "a", "nodes": 2}, "--ssh names 1 hosts, but --nodes 2 need 2"),
        ([], {"k8s": True, "claim": "c"}, "--image is missing"),
        ([], {"k8s": True, "image": "i"}, "--claim is missing, .*ReadWriteMany"),
        ([], {**K8S, "name": "My_Run"}, "--name My_Run: .*give --name my-run"),
        ([], {"slurm": True, "time_limit": "a day"}, "--time a day: is no time of Slurm's"),
        (["group_sise=2"], {}, "did you mean group_size"),
    ],
)
def test_what_cannot_run_is_refused(folder: Path, overrides: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        launch(Path("run.yaml"), overrides, print_only=True, **options)


def test_servers_are_refused_where_they_cannot_be(folder: Path) -> None:
    with pytest.raises(UserError, match="--server-nodes 1 needs a launcher that reaches them"):
        launch(Path("served.yaml"), server_nodes=1, print_only=True)
    with pytest.raises(UserError, match=r"does not divide the --gpus 4 of a server's node; set .*=2"):
        launch(Path("served.yaml"), ["rollout.vllm.tensor_parallel=3"], gpus=4, server_nodes=1, slurm=True)
    with pytest.raises(UserError, match=r"rollout.server.urls.*starts servers of its own; leave one of the two out"):
        launch(Path("served.yaml"), ["rollout.server.urls=[http://a:1]"], gpus=4, server_nodes=1, slurm=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slurm": True}, r"--slurm needs sbatch \(Slurm, which a cluster's login node has\).*or give --print"),
        (K8S, "--k8s needs kubectl"),
        ({"ssh": "a"}, "--ssh needs ssh"),
    ],
)
def test_a_launcher_that_is_not_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match=said):
        launch(Path("run.yaml"), **options)


def test_the_checks_of_train_come_first(folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean arithmetic"):
        launch(Path("run.yaml"), ["task=arithmetik"])


# What is written


def test_on_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "run.yaml", "run_dir=a b", gpus=2)
    is_a_script(text)
    words = shlex.split(text.splitlines()[-1])
    assert words[2:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "grpo_math", "train", "run.yaml", "run_dir=a b",
    ]  # fmt: skip
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in text
    alone = printed(capsys, "run.yaml", "backend.name=torch")
    assert shlex.split(alone)[2:] == ["-m", "grpo_math", "train", "run.yaml", "backend.name=torch"]


def test_ranks_on_this_machine_are_started(folder: Path) -> None:
    """The launcher takes this process's place, so that it needs one of its own."""
    code = "from pathlib import Path; from grpo_math.launch_command import launch; launch(Path('run.yaml'), {}, gpus=2)"
    python = folder / "python"
    python.write_text('#!/bin/bash\necho "$@"\nexit 3\n')
    python.chmod(0o755)
    code = f"import sys; sys.executable = {str(python)!r}; " + code.format(["model=Qwen/Qwen2.5-0.5B"])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert result.stdout.split()[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert result.returncode == 3


def test_over_ssh_every_host_gets_its_own_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stand-in for ssh writes down what it is told and runs none of it."""
    tools = stand_ins(folder, ssh='printf %s "${@: -1}" > "ssh-${@: -2:1}.log"')
    setup = "source 'my env/bin/activate'"
    options: dict[str, Any] = {"nodes": 2, "gpus": 4, "server_nodes": 1, "ssh": "a,me@b,c", "setup": setup}
    text = printed(capsys, "served.yaml", "run_dir=a b", **options)
    is_a_script(text)
    result = subprocess.run(["bash", "-c", text], env=tools, timeout=30)
    assert result.returncode == 0
    told = {file.stem.removeprefix("ssh-"): file.read_text() for file in folder.glob("ssh-*.log")}
    assert set(told) == {"a", "me@b", "c"}
    scripts = {host: shlex.split(command)[2] for host, command in told.items()}  # bash -lc SCRIPT
    for script in scripts.values():
        assert f"cd {folder} || exit 2\n{setup}\n" in script
    served = "rollout.server.urls=[http://c:8000,http://c:8001,http://c:8002,http://c:8003]"
    master = "--master-addr a --master-port 29500 -m grpo_math train served.yaml 'run_dir=a b' "
    assert (
        f"ports 29500 && exec torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 {master}'{served}'" in scripts["a"]
    )
    assert f"\nexec torchrun --nnodes 2 --node-rank 1 --nproc-per-node 4 {master}'{served}'" in scripts["me@b"]
    assert "python -m grpo_math serve served.yaml 'run_dir=a b' rollout.engine=vllm_server --host c" in scripts["c"]
    assert "--port 8000 --count 4" in scripts["c"]


def test_over_ssh_the_first_end_is_the_end_of_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = stand_ins(folder, ssh='case "$*" in *rank\\ 1*) exit 7;; *) trap "exit 0" TERM; sleep 60 & wait;; esac')
    text = printed(capsys, "run.yaml", nodes=2, ssh="a,b").replace("second < 600", "second < 1")
    began = time.monotonic()
    assert subprocess.run(["bash", "-c", text], env=tools, timeout=30).returncode == 7
    assert time.monotonic() - began < 20


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in whose PATH these programs come first."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}


SRUN = """
for word in "$@"; do case "$word" in --job-name=*) name="${word#*=}";; --nodelist=*) nodes="${word#*=}";; esac; done
export SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8 SLURMD_NODENAME=n3
echo "$name $nodes $MASTER_ADDR:$MASTER_PORT" >> steps.log
echo $$ > "$name.pid"
exec bash -c "${@: -1}"
"""
PYTHON = """
echo "RANK=$RANK LOCAL_RANK=$LOCAL_RANK WORLD_SIZE=$WORLD_SIZE $*" >> python.log
trap 'exit 143' TERM
touch "$3.there"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("told", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_slurm_script_saves_and_queues_again(
    folder: Path, capsys: pytest.CaptureFixture[str], told: signal.Signals, again: bool
) -> None:
    """Slurm's programs are stand-ins: what is tested is what the script does with them."""
    text = printed(capsys, "served.yaml", "run_dir=a b", nodes=2, gpus=4, server_nodes=1, slurm=True)
    is_a_script(text)
    tools = stand_ins(
        folder,
        srun=SRUN,
        python=PYTHON,
        scontrol='if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> requeue.log; fi',
        squeue='printf "9.0 serve\\n9.1 train\\n"',
        scancel='[ "$*" = "--signal=TERM 9.1" ] && kill -TERM "$(cat train.pid)"',
    )
    tools |= {"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "8"}
    script = subprocess.Popen(["bash", "-c", text], env=tools)
    try:
        end = time.monotonic() + 20
        while not ((folder / "train.there").exists() and (folder / "serve.there").exists()):
            assert time.monotonic() < end
            time.sleep(0.05)
        script.send_signal(told)
        if told == signal.SIGTERM:  # Slurm itself tells the ranks then
            time.sleep(0.3)
            os.kill(int((folder / "train.pid").read_text()), signal.SIGTERM)
        assert script.wait(timeout=20) == 143
    finally:
        for name in ("train", "serve"):
            with_pid = (folder / f"{name}.pid").read_text()
            assert not Path(f"/proc/{with_pid.strip()}").exists()  # nothing stays behind
    assert (folder / "requeue.log").exists() == again
    steps = sorted((folder / "steps.log").read_text().splitlines())
    assert steps == ["serve n3 n1:20009", "train n1,n2 n1:20009"]
    train = next(line for line in (folder / "python.log").read_text().splitlines() if " train " in line)
    urls = "rollout.server.urls=[http://n3:8000,http://n3:8001,http://n3:8002,http://n3:8003]"
    assert train == f"RANK=5 LOCAL_RANK=1 WORLD_SIZE=8 -m grpo_math train served.yaml run_dir=a b {urls}"
    serve = next(line for line in (folder / "python.log").read_text().splitlines() if " serve " in line)
    assert serve.endswith(
        f"serve served.yaml run_dir=a b rollout.engine=vllm_server {urls} --host n3 --port 8000 --count 4"
    )


def test_slurm_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {
        "partition": "gpu",
        "account": "me",
        "setup": "module load cuda",
        "time_limit": "2-00:00:00",
    }
    text = printed(capsys, "run.yaml", nodes=3, gpus=4, slurm=True, name="mine", **options)
    head = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    assert head == {
        "job-name": "mine", "nodes": "3", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8",
        "time": "2-00:00:00", "output": "%x-%j.log", "open-mode": "append", "signal": "B:USR1@600",
        "partition": "gpu", "account": "me",
    }  # fmt: skip
    assert "#SBATCH --requeue" in text
    assert "\nmodule load cuda\n" in text
    assert "serve" not in text


def test_kubernetes_objects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own.json").write_text('{"zero_optimization": {}}\n')
    overrides = ("run_dir=a b", "backend.deepspeed.config=own.json")
    text = printed(capsys, "served.yaml", *overrides, nodes=2, gpus=4, server_nodes=1, namespace="lab", **K8S)
    objects = {one["kind"]: one for one in yaml.safe_load_all(text)}
    assert set(objects) == {"ConfigMap", "Service", "NetworkPolicy", "Job"}
    for one in objects.values():
        assert one["apiVersion"] in ("v1", "batch/v1", "networking.k8s.io/v1")
        assert one["metadata"]["name"] == "served"
        assert one["metadata"]["namespace"] == "lab"
    assert objects["ConfigMap"]["data"] == {"served.yaml": SERVED, "own.json": '{"zero_optimization": {}}\n'}
    service, job = objects["Service"]["spec"], objects["Job"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"] == job["template"]["metadata"]["labels"]
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == service["selector"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    assert job["successPolicy"] == {"rules": [{"succeededIndexes": "0-1"}]}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["subdomain"] == objects["Service"]["metadata"]["name"]
    assert pod["volumes"][0] == {"name": "work", "persistentVolumeClaim": {"claimName": "grpo-math"}}
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["command"][:2] == ["bash", "-c"]
    script = container["command"][2]
    is_a_script(script)
    tools = stand_ins(folder, torchrun='echo torchrun "$@"', python='echo python "$@"')
    said = [
        subprocess.run(
            ["bash", "-c", script], env=tools | {"JOB_COMPLETION_INDEX": str(i)}, capture_output=True, text=True
        ).stdout.strip()
        for i in range(3)
    ]
    urls = ",".join(f"http://served-2.served:{port}" for port in range(8000, 8004))
    config = "/etc/grpo-math/served.yaml run_dir=a b backend.deepspeed.config=own.json"
    config += " backend.deepspeed.config=/etc/grpo-math/own.json"
    urls = f"rollout.server.urls=[{urls}]"
    for rank in (0, 1):
        assert said[rank] == (
            f"torchrun --nnodes 2 --node-rank {rank} --nproc-per-node 4 --master-addr served-0.served "
            f"--master-port 29500 -m grpo_math train {config} {urls}"
        )
    assert (
        said[2]
        == f"python -m grpo_math serve {config} rollout.engine=vllm_server {urls} --host 0.0.0.0 --port 8000 --count 4"
    )


def test_kubernetes_without_servers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = list(yaml.safe_load_all(printed(capsys, "run.yaml", gpus=8, **K8S)))
    assert [one["kind"] for one in objects] == ["ConfigMap", "Service", "Job"]
    assert "successPolicy" not in objects[-1]["spec"]
    with pytest.raises(UserError, match=r"backend.deepspeed.config=none.json: there is no such file here"):
        launch(Path("run.yaml"), ["backend.deepspeed.config=none.json"], print_only=True, **K8S)


def test_a_file_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "run.yaml", slurm=True)
    launch(Path("run.yaml"), slurm=True, out=Path("a/b"))
    assert capsys.readouterr().out == "a/b/run.sbatch: start it with sbatch a/b/run.sbatch\n"
    assert Path("a/b/run.sbatch").read_text() == text
    with pytest.raises(UserError, match=r"--out run.yaml: .* give another folder"):
        launch(Path("run.yaml"), slurm=True, out=Path("run.yaml"))


# What is shipped


@pytest.mark.parametrize(("file", "name", "options"), EXAMPLES, ids=[file for file, _, _ in EXAMPLES])
def test_the_examples_are_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(ROOT)
    text = printed(capsys, f"launch/{name}.yaml", **options)
    assert (ROOT / "launch" / file).read_text() == text
    said = text.splitlines()[1 if file.endswith(".sbatch") else 0].removeprefix("# ")
    assert shlex.split(said)[:3] == ["grpo-math", "launch", f"launch/{name}.yaml"]


@pytest.mark.parametrize(("name", "ranks", "gpu_memory"), SHIPPED, ids=[name for name, _, _ in SHIPPED])
def test_every_shipped_run_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ranks: int, gpu_memory: float
) -> None:
    from tests.tiny import save_tiny

    path = ROOT / "launch" / f"{name}.yaml"
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cfg = load_config(path)
    if name.startswith("arithmetic"):
        save_tiny(Path(cfg.model.path or ""))
    report = plan.plan(cfg, ranks, gpu_memory)
    assert "fits: " in report.splitlines()[-1], report
    assert "does not fit" not in report
    preflight.preflight(cfg)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"launch/{name}.yaml" in line for line in comment)


def test_the_launch_command_loads_no_torch() -> None:
    code = "import sys, grpo_math.launch_command; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "[]", result.stderr


def test_what_starts_a_file_is_known_for_each_launcher() -> None:
    assert launch_command.SUFFIX.keys() == launch_command.START.keys() == launch_command.NEEDS.keys()
