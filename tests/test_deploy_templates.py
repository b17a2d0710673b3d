"""The templates for clusters: they parse, and `diffit train` knows what they tell it."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from diffit.commands.train import Args

DEPLOY = Path(__file__).parent.parent / "deploy"
KNOWN = {f"--{name.replace('_', '-')}" for name in Args.model_fields}


def slurm_words() -> list[str]:
    """What srun is told to run."""
    (line,) = re.findall(r"^srun .*&$", (DEPLOY / "slurm.sh").read_text(), re.MULTILINE)
    return shlex.split(line.removesuffix("&"))


def kubernetes_job() -> dict:
    return yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())


def kubernetes_pod() -> dict:
    return kubernetes_job()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def options(words: list[str]) -> list[str]:
    """The options behind `train`, each of which must exist."""
    return [word for word in words[words.index("train") :] if word.startswith("--")]


def test_slurm_runs_train_with_options_that_exist():
    words = slurm_words()
    assert words[words.index("diffit") + 1] == "train"
    assert options(words) == ["--out", "--or-resume"]
    assert set(options(words)) <= KNOWN
    assert "--kill-on-bad-exit=1" in words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_runs_until_sigterm_and_then_requeues(tmp_path):
    # srun and scontrol are stood in for: one waits for the signal, one notes that it was called.
    (tmp_path / "srun").write_text(
        '#!/bin/bash\ntrap "echo checkpoint >> $LOG; exit 0" TERM\necho "$@" >> $LOG\n'
        "kill -TERM $PPID\nwhile true; do sleep 0.05; done\n"
    )
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $@" >> $LOG\n')
    for tool in ("srun", "scontrol"):
        (tmp_path / tool).chmod(0o755)
    ended = subprocess.run(
        ["bash", str(DEPLOY / "slurm.sh"), "my config.yaml", "runs/x"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "LOG": str(tmp_path / "log"),
            "SLURM_JOB_ID": "42",
            "SLURM_CPUS_PER_TASK": "8",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "log").read_text().splitlines() == [
        "--kill-on-bad-exit=1 diffit train my config.yaml --out runs/x --or-resume",
        "checkpoint",
        "scontrol requeue 42",
    ]


def test_every_sbatch_line_is_an_option_and_asks_for_a_signal_and_a_requeue():
    lines = re.findall(r"^#SBATCH (.*)$", (DEPLOY / "slurm.sh").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", line) for line in lines)
    assert {"--requeue", "--signal=B:TERM@300"} <= set(lines)


def test_kubernetes_runs_train_with_options_that_exist():
    job, pod = kubernetes_job(), kubernetes_pod()
    assert (job["kind"], job["apiVersion"]) == ("PyTorchJob", "kubeflow.org/v1")
    (container,) = pod["containers"]
    words = container["command"]
    assert words[words.index("-m") + 1 : words.index("-m") + 3] == ["diffit", "train"]
    assert options(words) == ["--out", "--or-resume"]
    assert set(options(words)) <= KNOWN


def test_kubernetes_asks_torchrun_for_what_it_knows_and_waits_for_the_checkpoint():
    from torch.distributed.run import get_args_parser

    pod = kubernetes_pod()
    (container,) = pod["containers"]
    program, *words = container["command"]
    assert program == "torchrun"
    asked = get_args_parser().parse_args(words)
    workers = kubernetes_job()["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert int(asked.nnodes) == workers["replicas"]
    assert int(asked.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    grace = pod["terminationGracePeriodSeconds"]
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
