#!/usr/bin/env bash
# Makes docs/results/models again: `MODELS=<folder with gemma.gguf and qwen.gguf> docs/results/models.sh`, at
# the top of the repository. The plan says which files those are. Ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/models}

# job NAME MODEL LEARNING_RATE
job() {
  python -m experiments.run --experiment=model_size --model="$2" --task=reviews --dtype=float32 \
    --targets=contradictions/1 --prompt_length=15 --constraint=cell --learning_rate="$3" \
    --seeds=1,2,3 --steps=100 --batch_size=4 --n_dev=64 --n_eval=250 --out_dir="$RUNS/$1"
}

job smollm2 smollm2-135m 0.01
job gemma "${MODELS:?names the folder of model files}/gemma.gguf" 0.003
job qwen "$MODELS/qwen.gguf" 0.003

here=docs/results/models
rm -rf "$RUNS/analysis"
python -m experiments.analyze --runs="$RUNS/smollm2,$RUNS/gemma,$RUNS/qwen" --out_dir="$RUNS/analysis"
# There are no differences if a model has not learned the task.
for table in groups targets differences; do
  if [ -e "$RUNS/analysis/tables/$table.md" ]; then cp "$RUNS/analysis/tables/$table.md" "$here"; fi
done
