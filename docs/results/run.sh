#!/usr/bin/env bash
# Makes docs/results again: `DATA=<folder of data sets> MODELS=<folder of model files> docs/results/run.sh`, at
# the top of the repository. The plans say which files those are. The four studies go on where
# they were if they were ended before. The first of them needs a GPU to end within a day.
set -euo pipefail

for part in four_tasks models starts experiments; do
  "docs/results/$part.sh"
done
python docs/results/peft_prompt.py runs/adapter
python -m experiments.audit --model=smollm2-135m --prompt=runs/adapter --task=reviews --n_eval=0
python -m experiments.calibration --trials=20 --seed=0
