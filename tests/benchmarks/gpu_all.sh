#!/usr/bin/env bash
# All that needs a GPU, in at most ten minutes: the tests, the benchmark, and sweeps/grid.yaml with Ray.
#
#     tests/benchmarks/gpu_all.sh DATA_DIR [OUT]
#
# DATA_DIR holds MNIST/raw. OUT (default: benchmarks/gpu) gets what each part printed (*.txt), gpu.json, the run folders
# of the two sweeps, and summary.md: for each part its exit code and seconds, for each sweep the mean use of the GPU and
# the most memory on it. A part that fails does not keep the others from running; the exit code is 1 then.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 1 ] || { echo "usage: tests/benchmarks/gpu_all.sh DATA_DIR [OUT]" >&2; exit 2; }
command -v nvidia-smi >/dev/null || { echo "error: no nvidia-smi here, so no GPU" >&2; exit 2; }
nvidia-smi -L >/dev/null || { echo "error: nvidia-smi finds no GPU" >&2; exit 2; }
data=$(realpath "$1") || exit 2
out=$(realpath -m "${2:-benchmarks/gpu}")
mkdir -p "$out"
export QDTUNE_DATA="$data" OMP_NUM_THREADS=1 PYTHONPATH="$PWD"
unset PYTHONDONTWRITEBYTECODE  # without byte code on disk every Ray worker compiles all that it imports
python=${PYTHON:-python}
failed=0

{
  echo "# GPU"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  git log -1 --format='commit %h' 2>/dev/null || true
  echo
  echo "| part | exit code | seconds | GPU in use, mean | GPU memory, most |"
  echo "|---|---|---|---|---|"
} | tee "$out/summary.md"

# part NAME LIMIT_S COMMAND...: runs it, with what the GPU does each second beside it.
part() {
  local name=$1 limit=$2 began=$SECONDS watcher code
  shift 2
  : >"$out/$name.csv"  # there even if the part ends before anything is seen
  nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 >>"$out/$name.csv" &
  watcher=$!
  timeout -k 10 "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  kill "$watcher" 2>/dev/null
  wait "$watcher" 2>/dev/null
  [ $code -eq 0 ] || failed=1
  awk -F', *' -v name="$name" -v code=$code -v took=$((SECONDS - began)) \
    '{ sum += $1; if ($2 > most) most = $2 } END {
      printf "| %s | %d | %d | %.0f %% | %d MiB |\n", name, code, took, NR ? sum / NR : 0, most }' \
    "$out/$name.csv" | tee -a "$out/summary.md"
}

sweep() {
  part "$1" 150 "$python" -m qdtune.launch sweeps/grid.yaml --data-dir "$data" --runs-dir "$out/runs" \
    --set "name=$1" --set data.dataset=mnist --set "resources={gpu: $2, cpu: 1}"
}

part tests 120 "$python" -m pytest -q -n0 -m "slow or not slow" tests/training/test_gpu.py
part benchmark 170 "$python" tests/benchmarks/gpu.py --data-dir "$data" --out "$out" --repeats 3 \
  --sizes 1 5 32 128 512
sweep grid_eighth 0.125
sweep grid_auto auto
cat "$out/benchmark.txt"
tail -n 3 "$out"/tests.txt "$out"/grid_*.txt
exit $failed
