#!/usr/bin/env bash
# Makes docs/results/starts again, at the top of the repository. Fifty minutes on two CPU cores; ended
# before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/starts}

python -m experiments.run --experiment=init --task=reviews --dtype=float32 --targets=code/01 \
  --prompt_length=12 --init=target,vocab --constraint=penalty,cell --gamma=0.03,auto \
  --learning_rate=0.01 --seeds=1,2,3 --steps=60 --batch_size=4 --n_dev=64 --n_eval=250 \
  --out_dir="$RUNS/reviews"

here=docs/results/starts
rm -rf "$RUNS/analysis"
python -m experiments.analyze --runs="$RUNS/reviews" --out_dir="$RUNS/analysis"
cp "$RUNS"/analysis/tables/{groups,gammas}.md "$here"
