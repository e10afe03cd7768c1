#!/bin/bash
# The service as a job that never ends by itself: where its time is up, Slurm says so two minutes before,
# and the job puts itself back into the queue. Clients wait meanwhile: the watcher sends again what has no verdict.
#   CRYORAY_ROOT=/data sbatch cluster/slurm/serve.sh [NAME|DIR…]
#SBATCH --job-name=cryoray-serve
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

venv=${CRYORAY_VENV:-/data/cryoray/venv}
root=${CRYORAY_ROOT:-/data}
port=${CRYORAY_PORT:-8000}
run=${CRYORAY_RUN:-$HOME/.cryoray}
umask 077
mkdir -p "$run"

arguments=(serve --root "$root" --host "${CRYORAY_HOST:-127.0.0.1}" --port "$port")
for ensemble in "$@"; do
    arguments+=(--ensemble "$ensemble")
done

service=
stop() {
    if [ -n "$service" ]; then
        kill -TERM "$service" 2>/dev/null || true
        wait "$service" || true
    fi
}
again() {
    echo "time is up: back into the queue"
    stop
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again USR1
trap 'stop; exit 0' TERM

# Where clients find it; it appears whole.
printf 'http://%s:%s\n' "$(hostname -f)" "$port" > "$run/service.url.part"
mv "$run/service.url.part" "$run/service.url"

"$venv/bin/cryoray" "${arguments[@]}" &
service=$!
wait "$service"
