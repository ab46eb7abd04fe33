#!/usr/bin/env bash
# A sweep in one Slurm allocation: a Ray head on the first node, a Ray worker on each other node.
#   sbatch docker/slurm.sh sweeps/smoke.yaml --runs-dir runs
# The arguments are those of `python -m qdtune.launch`. The same command goes on after an interruption. Activate the
# environment of qdtune first, or let QDTUNE_BIN name its bin folder. The home folder must be the same on all nodes: it
# holds the cluster's token while the job runs. No Slurm was at hand for the tests: a stand-in replaces srun and scontrol.
#SBATCH --job-name=qdtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
# For GPUs add: --gpus-per-node=4
set -euo pipefail
umask 077

WAIT_S=${QDTUNE_WAIT_S:-180}  # how long the nodes may take to start Ray
PORT=${QDTUNE_PORT:-6379}

[ $# -gt 0 ] || { echo "error: a sweep file is needed: sbatch $0 SWEEP [options of qdtune launch]" >&2; exit 2; }
[ -n "${SLURM_JOB_NODELIST:-}" ] || { echo "error: this runs in a Slurm job: sbatch $0 $*" >&2; exit 2; }
[ -z "${QDTUNE_BIN:-}" ] || export PATH="$QDTUNE_BIN:$PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$head:$PORT
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}

secret=$(mktemp -d "$HOME/.qdtune-slurm-XXXXXX")
temp=/tmp/qdtune-${SLURM_JOB_ID:-$$}
steps=()
sweep=

on_all_nodes() { srun --overlap --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 "$@"; }

# shellcheck disable=SC2329  # a trap calls it
finish() {
  trap '' TERM INT USR1 USR2
  # The workers first, so that none of them misses its head.
  for ((i = ${#steps[@]} - 1; i >= 0; i--)); do
    kill -TERM "${steps[i]}" 2> /dev/null || true
    wait "${steps[i]}" || true
  done
  on_all_nodes rm -rf "$temp" || true
  rm -rf "$secret"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
trap 'exit 138' USR1
trap 'exit 140' USR2

python -c 'import secrets; print(secrets.token_hex(32))' > "$secret/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secret/token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

wait_until() {  # WHAT COMMAND...: tries a command until it succeeds, while the steps live and there is time
  local what=$1 until=$((SECONDS + WAIT_S)) step
  shift
  until "$@" 2> /dev/null; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2> /dev/null || { echo "error: Ray ended before $what" >&2; exit 1; }
    done
    [ "$SECONDS" -lt "$until" ] || { echo "error: not within $WAIT_S s: $what" >&2; exit 1; }
    sleep 1
  done
}

# shellcheck disable=SC2329  # wait_until calls it, and the next one
is_head_up() { (: < "/dev/tcp/$head/$PORT"); }

# shellcheck disable=SC2329
has_all_nodes() {
  python - "$address" "${#nodes[@]}" <<'PYTHON'
import sys

import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
}

on_all_nodes mkdir -p -m 700 "$temp"
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$head" --port="$PORT" --num-cpus="$cpus" \
  --include-dashboard=false --temp-dir="$temp/r" > /dev/null &
steps+=($!)
wait_until "the head answers at $address" is_head_up
others=$((${#nodes[@]} - 1))
if [ "$others" -gt 0 ]; then
  srun --overlap --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head" \
    ray start --block --address="$address" --num-cpus="$cpus" > /dev/null &
  steps+=($!)
fi
wait_until "all ${#nodes[@]} nodes have joined" has_all_nodes

python -m qdtune.launch "$@" --address "$address" &
sweep=$!
trap 'kill -TERM "$sweep" 2> /dev/null' TERM  # qdtune ends in order, and the next job goes on
trap 'kill -INT "$sweep" 2> /dev/null' INT
trap 'kill -USR1 "$sweep" 2> /dev/null' USR1
trap 'kill -USR2 "$sweep" 2> /dev/null' USR2
code=0
wait "$sweep" || code=$?
while kill -0 "$sweep" 2> /dev/null; do  # a signal ended the first wait
  code=0
  wait "$sweep" || code=$?
done
exit "$code"
