#!/usr/bin/env bash
# Makes docs/results/experiments again: `DATA=<folder of data sets> MODELS=<folder with gemma.gguf>
# docs/results/experiments.sh`, at the top of the repository. The plan of the three models says which file that
# is. Ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/experiments}
GEMMA=${MODELS:?names the folder of model files}/gemma.gguf

# job NAME EXPERIMENT MODEL LEARNING_RATE FLAGS...
job() {
  python -m experiments.run --experiment="$2" --model="$3" --learning_rate="$4" --task=sst2 \
    --data_dir="${DATA:?names the folder of data sets}" --dtype=float32 --prompt_length=12 --seeds=1,2,3 \
    --steps=100 --batch_size=6 --n_dev=64 --n_eval=200 --out_dir="$RUNS/$1" "${@:5}"
}

# tuning NAME MODEL LEARNING_RATE GAMMA
tuning() {
  job "$1/gamma" gamma "$2" "$3" --targets=code/01 --gamma="$4,auto" --constraint=penalty,cell
  job "$1/init" init "$2" "$3" --targets=code/01 --gamma="$4" --init=target --reuse="$RUNS/$1/gamma"
}

# measurements NAME MODEL LEARNING_RATE GAMMA: of the prompts of `tuning`.
measurements() {
  local cell=(--targets=code/01 --init=vocab --constraint=cell --reuse="$RUNS/$1/gamma")
  job "$1/projection" projection "$2" "$3" "${cell[@]}" --constraint=penalty,cell --gamma="$4,auto"
  job "$1/discrete" discrete "$2" "$3" "${cell[@]}"
  job "$1/path" path "$2" "$3" "${cell[@]}" --seeds=1
}

# definitions NAME MODEL LEARNING_RATE GAMMA
definitions() {
  job "$1/definitions" true_definitions "$2" "$3" --init=vocab --gamma="$4" \
    --targets=definitions:1,contradictions:1,other_definitions:1 --reuse="$RUNS/$1/gamma"
}

smollm2=(smollm2 smollm2-135m 0.03 0.1)
gemma=(gemma "$GEMMA" 0.003 1)
for step in tuning measurements definitions; do
  "$step" "${smollm2[@]}"
  "$step" "${gemma[@]}"
done
