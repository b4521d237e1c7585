#!/usr/bin/env bash
# What a bare machine with a GPU is asked, in one command: are the CUDA graphs right, and how fast?
#   bash tests/gpu_check.sh                          on the GPU, at most 8 minutes
#   bash tests/gpu_check.sh --device cpu --quick     the same code anywhere, 2 minutes
# Wheels that the machine lacks are taken from .whl/. What comes back: $OUT/gpu_check.json, written
# after every section, and $OUT/gpu_check.log.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
python=${PYTHON:-python3}
limit=${LIMIT:-460}
mkdir -p "$out"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONPATH=${PYTHONPATH:-}
if ! "$python" -c 'import ale_py, gymnasium, tyro' 2>/dev/null; then
  export PYTHONPATH="$PWD/.site:$PYTHONPATH"
  if ! "$python" -c 'import ale_py, gymnasium, tyro' 2>/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$PWD/.site" .whl/*.whl || exit 3
  fi
fi
timeout --signal=INT --kill-after=10 "$((limit + 20))" \
  "$python" tests/gpu_check.py --out "$out" --limit "$limit" "$@" 2>&1 | tee "$out/gpu_check.log"
status=${PIPESTATUS[0]}
echo "$out/gpu_check.json"
exit "$status"
