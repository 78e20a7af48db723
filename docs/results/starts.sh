#!/usr/bin/env bash
# Makes docs/results/starts again, at the top of the repository. About an hour and a half on two CPU cores;
# ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/starts}

# job TASK FLAGS...
job() {
  python -m experiments.run --experiment=init --task="$1" --dtype=float32 --prompt_length=12 \
    --init=target,vocab --constraint=penalty,cell --seeds=1,2,3 --batch_size=4 --n_dev=64 \
    --n_eval=250 --out_dir="$RUNS/$1" "${@:2}"
}

job reviews --targets=code/01 --gamma=0.03,auto --learning_rate=0.01 --steps=60
job plots --targets=contradictions/1 --gamma=auto --learning_rate=0.03 --steps=120

here=docs/results/starts
rm -rf "$RUNS/analysis"
python -m experiments.analyze --runs="$RUNS/reviews,$RUNS/plots" --out_dir="$RUNS/analysis"
cp "$RUNS"/analysis/tables/{groups,gammas}.md "$here"
