#!/usr/bin/env bash
# Makes the measurements of version 0.1.0 in this folder again:
# `DATA=<folder of data sets> docs/results/run.sh`, at the top of the repository. Two and a half hours on two CPU cores; ended before, it goes on where it was.
set -euo pipefail

RUNS=${RUNS:-runs/results}
NINE=instructions/03,sentences/01,code/01,instructions/04,sentences/07,code/02
NINE+=,instructions/05,sentences/08,code/03
THREE=instructions/03,sentences/01,code/01

# job NAME EXPERIMENT FLAGS...
job() {
  python -m experiments.run --experiment="$2" --data_dir="${DATA:?names the folder of data sets}" \
    --prompt_length=12 --batch_size=8 --n_dev=256 --n_eval=256 --out_dir="$RUNS/$1" "${@:3}"
}

# analysis NAME JOBS FILES...: those of the analysis of jobs (NAME,NAME) that are kept here.
analysis() {
  local out="$RUNS/analysis/$1" here="docs/results/$1"
  rm -rf "$out" "$here"
  mkdir "$here"
  python -m experiments.analyze --runs="$RUNS/${2//,/,$RUNS/}" --out_dir="$out"
  for file in "${@:3}"; do
    cp "$out"/{tables,figures}/"$file".{md,csv,png} "$here" 2> /dev/null || true
  done
}

job sst2 certified --task=sst2 --targets=$NINE --gamma=0.01 --seeds=1,10 --steps=100
job trec certified --task=trec --targets=$NINE --gamma=0.01 --seeds=1,10 --steps=200
job gamma gamma --task=sst2 --targets=instructions/03 --steps=100 --reuse="$RUNS/sst2"
job length length --task=sst2 --targets=passages:1 --prompt_length=4,7,14,28,56 --gamma=0.01 \
  --constraint=penalty,cell --steps=100
job vocab certified --task=sst2 --targets=$THREE --init=vocab --gamma=auto --steps=100 \
  --reuse="$RUNS/sst2"
job init init --task=sst2 --targets=instructions/03,sentences/01 --gamma=0,0.01 --steps=100 \
  --reuse="$RUNS/sst2,$RUNS/gamma"
job projection projection --task=sst2 --targets=$NINE --constraint=penalty,cell --gamma=0.01 \
  --seeds=1,10 --steps=100 --reuse="$RUNS/sst2"
job path path --task=sst2 --targets=$THREE --constraint=penalty,cell --gamma=0.01 --steps=100 \
  --reuse="$RUNS/sst2"
job discrete discrete --task=sst2 --targets=$NINE --constraint=penalty,cell --gamma=0.01 \
  --seeds=1,10 --steps=100 --reuse="$RUNS/sst2"
job definitions true_definitions --task=sst2 --init=vocab --gamma=0.1 --steps=100 \
  --targets=definitions:3,contradictions:3,other_definitions:3 --reuse="$RUNS/sst2"

analysis main sst2,trec groups targets differences main training
analysis gamma gamma gammas gamma
analysis length length lengths length
analysis vocab vocab targets
analysis init init gammas
analysis projection projection projection
analysis path path path
analysis discrete discrete discrete gaps
analysis definitions definitions groups targets differences
