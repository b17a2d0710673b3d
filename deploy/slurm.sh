#!/bin/bash
# Training on SLURM: sbatch deploy/slurm.sh CONFIG RUN
#
# Copy this file and set what is your cluster's: partition, account, GPUs, the environment. RUN is a
# folder that all machines see. One process runs on each GPU; srun starts them and `diffit train`
# finds the others by the variables of the job step.

#SBATCH --job-name=diffit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Five minutes before the time is up, and when the job is preempted, the run writes a checkpoint.
#SBATCH --requeue
#SBATCH --signal=B:TERM@300

set -u
config=$1 run=$2

# The batch script alone receives the signal: it passes it on, waits for the checkpoint, and puts
# the job back into the queue. The requeued job goes on where the run stands.
stop() {
    kill -TERM "$step" 2>/dev/null
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop TERM

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# --kill-on-bad-exit ends the others when one process fails: on GPUs nothing else tells them.
srun --kill-on-bad-exit=1 diffit train "$config" --out "$run" --or-resume &
step=$!
wait "$step"
