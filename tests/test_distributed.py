"""Who a process is, as launchers say it; alone, nothing is asked of others."""

import os
import subprocess
import sys

import pytest
import torch

from diffit import distributed
from diffit.distributed import Place, first_host, place
from diffit.errors import UsageError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture
def environment(monkeypatch):
    """The environment without a launcher; a function that sets what one would."""
    for name in [n for n in os.environ if n in NAMES or n.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def launched(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return launched


def test_alone_a_process_is_the_first_of_one_and_hears_itself(environment):
    assert place() == Place(0, 1, 0, 1)
    assert distributed.is_first()
    assert not distributed.restarted()
    distributed.join()
    distributed.barrier()
    assert distributed.gather([1, "a"]) == [[1, "a"]]
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    total = torch.ones(2)
    assert torch.equal(distributed.sum_over_ranks(total), total)
    assert distributed.of_first(lambda: 7) == 7


def test_torchrun_says_who_a_process_is(environment):
    environment(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    environment(SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2)  # srun has started torchrun
    assert place() == Place(5, 8, 1, 4)


def test_srun_says_who_a_process_is(environment):
    environment(SLURM_PROCID=5, SLURM_STEP_NUM_TASKS=8, SLURM_LOCALID=1)
    environment(SLURM_STEP_TASKS_PER_NODE="4(x2)")
    assert place() == Place(5, 8, 1, 4)


def test_a_batch_script_is_alone_whatever_its_job_may_start(environment):
    environment(SLURM_PROCID=0, SLURM_NTASKS=8, SLURM_JOB_ID=7)
    assert place() == Place(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("n[03-05,9],m1", "n03"),
        ("rack1-n[012]", "rack1-n012"),
        ("n[1-2]-ib,m", "n1-ib"),
    ],
)
def test_the_first_host_of_a_slurm_list_is_where_processes_meet(hosts, first):
    assert first_host(hosts) == first


def test_processes_of_a_slurm_step_meet_at_a_port_of_their_job(environment):
    step = {"SLURM_STEP_NODELIST": "n[03-05]", "SLURM_JOB_ID": "16385"}
    assert distributed._meeting(step) == "tcp://n03:16385"
    assert distributed._meeting({**step, "SLURM_JOB_ID": "16386"}) == "tcp://n03:16386"
    assert distributed._meeting({**step, "MASTER_ADDR": "x", "MASTER_PORT": "9"}) == "tcp://x:9"
    assert distributed._meeting({"RANK": "0"}) == "env://"


def test_a_list_without_a_host_is_refused():
    with pytest.raises(UsageError, match="names no machine; set MASTER_ADDR"):
        first_host("[1-2]")


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_work_that_was_started_again_is_known(environment, name):
    environment(**{name: 0})
    assert not distributed.restarted()
    environment(**{name: 2})
    assert distributed.restarted()


def test_an_environment_that_makes_no_sense_is_refused(environment):
    environment(RANK="first", WORLD_SIZE=2)
    with pytest.raises(UsageError, match="RANK='first', which is no number; unset it"):
        place()


def test_processes_without_a_place_to_meet_are_refused(environment, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    environment(RANK=0, WORLD_SIZE=2)
    with pytest.raises(UsageError, match=r"does not find the others: .*torchrun"):
        distributed.join()


def test_a_process_whose_launcher_was_killed_before_it_met_the_others_ends():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    environment = {
        **os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "diffit",
        distributed.LAUNCHER: str(dead.pid),
    }  # fmt: skip
    words = [sys.executable, "-c", "from diffit.distributed import join; join()"]
    # Without a watch it would wait an hour for the first process.
    orphan = subprocess.run(words, env=environment, timeout=60, capture_output=True, check=False)
    assert orphan.returncode == distributed.LOST


def test_only_a_gpu_is_shared_out(environment, monkeypatch):
    environment(RANK=3, WORLD_SIZE=4, LOCAL_RANK=3, LOCAL_WORLD_SIZE=4)
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="4 processes on a machine with 2 GPUs"):
        distributed.own_device(torch.device("cuda"))
