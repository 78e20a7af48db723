#!/usr/bin/env bash
# Makes docs/results/experiments again: `DATA=<folder of data sets> MODELS=<folder with gemma.gguf>
# docs/results/experiments.sh`, at the top of the repository. The plan of the three models says which file that
# is. An hour and three quarters on two CPU cores; ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/experiments}

# job NAME EXPERIMENT FLAGS...
job() {
  python -m experiments.run --experiment="$2" --task=sst2 --targets=code/01 --prompt_length=12 \
    --data_dir="${DATA:?names the folder of data sets}" --dtype=float32 --steps=100 --batch_size=6 \
    --n_dev=64 --n_eval=200 --out_dir="$RUNS/$1" "${@:3}"
}

# of_model NAME GAMMA FLAGS...
of_model() {
  job "$1/gamma" gamma --gamma="$2,auto" --constraint=penalty,cell --seeds=1,2,3 "${@:3}"
  for measured in discrete:1,2,3 path:1; do
    job "$1/${measured%:*}" "${measured%:*}" --init=vocab --constraint=cell --seeds="${measured#*:}" \
      --reuse="$RUNS/$1/gamma" "${@:3}"
  done
}

of_model smollm2 0.1 --model=smollm2-135m --learning_rate=0.03
of_model gemma 1 --model="${MODELS:?names the folder of model files}/gemma.gguf" --learning_rate=0.003
job smollm2/init init --gamma=0.1 --init=target --seeds=1,2,3 --model=smollm2-135m --learning_rate=0.03 \
  --reuse="$RUNS/smollm2/gamma"

here=docs/results/experiments
rm -rf "$RUNS/analysis"
python -m experiments.analyze --out_dir="$RUNS/analysis" \
  --runs="$(find "$RUNS" -mindepth 2 -maxdepth 2 -type d | sort | paste -sd, -)"
cp "$RUNS"/analysis/tables/{groups,gammas,targets,projection,discrete,gaps,path}.md "$here"
cp "$RUNS"/analysis/figures/path.png "$here"
