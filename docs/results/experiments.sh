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

smollm2=(--model=smollm2-135m --learning_rate=0.03)
tuned=("${smollm2[@]}" --reuse="$RUNS/smollm2/gamma")
held=(--constraint=penalty,cell --seeds=1,2,3)
job smollm2/gamma gamma --gamma=0.1,auto "${held[@]}" "${smollm2[@]}"
job gemma/gamma gamma --gamma=1,auto "${held[@]}" --learning_rate=0.003 \
  --model="${MODELS:?names the folder of model files}/gemma.gguf"
job smollm2/init init --gamma=0.1 --init=target --seeds=1,2,3 "${tuned[@]}"
job smollm2/discrete discrete --init=vocab --constraint=cell --seeds=1,2,3 "${tuned[@]}"
job smollm2/path path --init=vocab --constraint=cell --seeds=1 "${tuned[@]}"

here=docs/results/experiments
rm -rf "$RUNS/analysis"
python -m experiments.analyze --out_dir="$RUNS/analysis" \
  --runs="$(printf "$RUNS/%s," smollm2/{gamma,init,discrete,path})$RUNS/gemma/gamma"
cp "$RUNS"/analysis/tables/{groups,gammas,targets,projection,discrete,gaps,path}.md "$here"
cp "$RUNS"/analysis/figures/path.png "$here"
