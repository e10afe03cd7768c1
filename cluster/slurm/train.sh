#!/bin/bash
# Trains an ensemble on several nodes: one Ray for this job alone, started and stopped with it.
#   sbatch cluster/slurm/train.sh OUT SET…
# A job that is requeued (a node was lost, or preempted) goes on after the last round that was finished.
#SBATCH --job-name=cryoray-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: sbatch $0 OUT SET..." >&2; exit 2; }
out=$1
shift
venv=${CRYORAY_VENV:-/data/cryoray/venv}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# A token of this job's own, on the shared file system, for its owner alone.
umask 077
RAY_AUTH_TOKEN_PATH=${CRYORAY_RUN:-$HOME/.cryoray}/ray_token.$SLURM_JOB_ID
mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
[ -s "$RAY_AUTH_TOKEN_PATH" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH"
export RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

if [ -e "$out" ]; then
    echo "$out is there already: nothing to do"
    exit 0
fi
CRYORAY_RUNTIME__ADDRESS="$head:$port" srun --kill-on-bad-exit=1 \
    "$venv/bin/ray" symmetric-run \
    --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- "$venv/bin/cryoray" train "$@" --out "$out" --gpu
rm -f "$RAY_AUTH_TOKEN_PATH"
