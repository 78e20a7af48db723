#!/usr/bin/env bash
# Makes docs/results/experiments again: `DATA=<folder of data sets> MODELS=<folder with gemma.gguf>
# docs/results/experiments.sh`, at the top of the repository. The plan of the three models says which file that
# is. Four hours on two CPU cores; ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/experiments}

# job NAME EXPERIMENT FLAGS...: for the model that NAME begins with.
job() {
  local model
  case "$1" in
    smollm2/*) model=(--model=smollm2-135m --learning_rate=0.03) ;;
    gemma/*) model=(--model="${MODELS:?names the folder of model files}/gemma.gguf" --learning_rate=0.003) ;;
  esac
  local task=sst2
  if [[ $1 == */plots ]]; then task=plots; fi
  python -m experiments.run --experiment="$2" "${model[@]}" --task=$task \
    --data_dir="${DATA:?names the folder of data sets}" --dtype=float32 --steps=100 --batch_size=6 \
    --n_dev=64 --n_eval=200 --out_dir="$RUNS/$1" "${@:3}"
}

# more NAME EXPERIMENT FLAGS...: a job that takes over what it can of the model's job `gamma`.
more() {
  job "$1" "$2" --reuse="$RUNS/${1%/*}/gamma" "${@:3}"
}

code=(--targets=code/01 --prompt_length=12)
kinds=(--targets=definitions:1,contradictions:1,other_definitions:1 --prompt_length=12)
random=(--init=vocab --seeds=1,2,3)

job smollm2/gamma gamma --gamma=0.1,auto --constraint=penalty,cell "${code[@]}" "${random[@]}"
job gemma/gamma gamma --gamma=1,auto --constraint=penalty,cell "${code[@]}" "${random[@]}"
more smollm2/init init --gamma=0.1 --init=target --seeds=1,2,3 "${code[@]}"
more smollm2/discrete discrete --constraint=cell "${code[@]}" "${random[@]}"
more smollm2/path path --constraint=cell --init=vocab --seeds=1 "${code[@]}"
more gemma/discrete discrete --constraint=cell "${code[@]}" "${random[@]}"
more gemma/init init --gamma=1 --init=target --seeds=1,2,3 "${code[@]}"
more gemma/path path --constraint=cell --init=vocab --seeds=1 "${code[@]}"
more smollm2/definitions true_definitions --gamma=0.1 "${kinds[@]}" "${random[@]}"
more smollm2/length length --constraint=cell --targets=passages:1 --prompt_length=4,36 "${random[@]}"
more gemma/definitions true_definitions --gamma=10 "${kinds[@]}" "${random[@]}"
job smollm2/plots main --constraint=cell "${code[@]}" "${random[@]}"

here=docs/results/experiments
rm -rf "$RUNS/analysis"
python -m experiments.analyze --out_dir="$RUNS/analysis" \
  --runs="$(printf "$RUNS/%s," smollm2/{gamma,init,discrete,path,definitions,length,plots})$(
    printf "$RUNS/%s," gemma/{gamma,discrete,init,path})$RUNS/gemma/definitions"
cp "$RUNS"/analysis/tables/{groups,gammas,lengths,targets,differences,projection,discrete,gaps,path}.md "$here"
cp "$RUNS"/analysis/figures/{path,discrete}.png "$here"
