#!/usr/bin/env bash
# Makes everything in this folder anew: `DATA=<folder of data sets> docs/results/run.sh`, at the
# top of the repository. About two hours on two CPU cores; ended before, it goes on where it was.
set -euo pipefail

RUNS=runs/results
NINE=instructions/03,sentences/01,code/01,instructions/04,sentences/07,code/02
NINE+=,instructions/05,sentences/08,code/03
THREE=instructions/03,sentences/01,code/01

# job NAME EXPERIMENT FLAGS...
job() {
  python -m experiments.run --experiment="$2" --data_dir="${DATA:?names the folder of data sets}" \
    --prompt_length=12 --learning_rate=0.03 --out_dir="$RUNS/$1" "${@:3}"
}

# analysis NAME JOB...
analysis() {
  local jobs
  jobs=$(printf ",$RUNS/%s" "${@:2}")
  rm -rf "$RUNS/analysis/$1"
  python -m experiments.analyze --runs="${jobs:1}" --out_dir="$RUNS/analysis/$1"
}

job sst2 certified --task=sst2 --targets=$NINE --gamma=0.01 --seeds=1,10 --steps=100
job trec certified --task=trec --targets=$NINE --gamma=0.01 --seeds=1,10 --steps=200
job gamma gamma --task=sst2 --targets=instructions/03 --steps=100 --reuse=$RUNS/sst2
job length length --task=sst2 --targets=passages:1 --prompt_length=4,7,14,28,56 --gamma=0.01 \
  --constraint=penalty,cell --steps=100
job vocab certified --task=sst2 --targets=$THREE --init=vocab --gamma=auto --steps=100 \
  --reuse=$RUNS/sst2
job init init --task=sst2 --targets=instructions/03,sentences/01 --gamma=0,0.01 --steps=100 \
  --reuse=$RUNS/sst2,$RUNS/gamma
job projection projection --task=sst2 --targets=$NINE --constraint=penalty,cell --gamma=0.01 \
  --seeds=1,10 --steps=100 --reuse=$RUNS/sst2
job path path --task=sst2 --targets=$THREE --constraint=penalty,cell --gamma=0.01 --steps=100 \
  --reuse=$RUNS/sst2
job discrete discrete --task=sst2 --targets=$THREE --constraint=penalty,cell --gamma=0.01 \
  --steps=100 --reuse=$RUNS/sst2
job definitions true_definitions --task=sst2 --init=vocab --gamma=0.1 --steps=100 \
  --targets=definitions:3,contradictions:3,other_definitions:3 --reuse=$RUNS/sst2

analysis main sst2 trec
for each in gamma length vocab init projection path discrete definitions; do
  analysis $each $each
done
