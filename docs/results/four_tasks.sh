#!/usr/bin/env bash
# Makes docs/results/four_tasks again: `DATA=<folder of data sets> docs/results/four_tasks.sh`, at the
# top of the repository. Four and a half minutes on one H100, whose memory the four jobs share.
set -euo pipefail

RUNS=${RUNS:-runs/four_tasks}
TARGETS=instructions/03,sentences/01,code/01,instructions/04,sentences/07,code/02
TARGETS+=,instructions/05,sentences/08,code/03

export XLA_PYTHON_CLIENT_MEM_FRACTION=0.2
tasks=(sst2 trec agnews subj)
jobs=()
for task in "${tasks[@]}"; do
  python -m experiments.run --experiment=main --task="$task" --targets="$TARGETS" \
    --data_dir="${DATA:?names the folder of data sets}" --prompt_length=12 --gamma=0.01,0.03 \
    --seeds=1,2,3 --steps=300 --batch_size=8 --n_dev=128 --n_eval=1000 --out_dir="$RUNS/$task" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done

here=docs/results/four_tasks
rm -rf "$RUNS/analysis"
python -m experiments.analyze --runs="$RUNS/sst2,$RUNS/trec,$RUNS/agnews,$RUNS/subj" \
  --out_dir="$RUNS/analysis"
cp "$RUNS"/analysis/tables/{groups,targets,differences}.md "$here"
cp "$RUNS"/analysis/figures/{main,training}.png "$here"
