#!/usr/bin/env bash
# Runs one job on a Cloud TPU slice, through preemptions: see ./launch_tpu.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'END'
Runs one job of experiments.run on all hosts of a Cloud TPU slice together:

  ./launch_tpu.sh --name=SLICE --zone=ZONE --type=TYPE [flags] -- --out_dir=gs://BUCKET/JOB [job's flags]

It creates the slice, or uses the one of that name; copies and installs this project; runs the job
with the flags after -- on every host and shows its log; continues it after a preemption, on a new
slice if the old one is gone; and copies --out_dir to runs/SLICE/ here. If this script is interrupted
the job continues, and the same command shows it again.

  --name=SLICE       the slice, e.g. wayward
  --zone=ZONE        where it is, e.g. us-west4-a
  --type=TYPE        its accelerator type, e.g. v5litepod-16
  --version=VERSION  its software; by default the one that goes with the type
  --project=ID       its Google Cloud project; by default gcloud's own
  --spot             a cheaper slice, which may be preempted
  --copy=PATH        take a file or folder of this project's folder along, e.g. data for
                     --data_dir=data; can be given several times
  --restarts=N       how often to try again after a preemption, waiting for capacity included (1000)
  --wait=SECONDS     between two tries (60)
  --delete           delete the slice once the job has succeeded and its results are here
  --dry_run          show each command and run none
  --forecast         run nothing there, and say here what the job would take on a slice of this
                     --type: memory, time and utilization, by the compiler's estimates; needs
                     pip install -e '.[forecast-tpu]'

--out_dir may be a relative path where the slice is not --spot; it is then on the disk of the slice's
first host and goes with it. For several hosts, first ssh-add ~/.ssh/google_compute_engine.

Exit code: the job's (2 is bad input, which is never tried again), or that of the gcloud that failed.
END
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

say() { echo "launch_tpu.sh: $1" >&2; }

quoted() { # its words, so that a shell reads them back
  local word line='' apostrophe="'" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//$apostrophe/$escaped}'"
    line+="${line:+ }$word"
  done
  echo "$line"
}

topology() { # the usual one of slices of this type, by libtpu's name
  local kind=${type%-*} size
  case $kind:${type##*-} in
    v5litepod:1 | v6e:1) size=1x1 ;;
    v5litepod:4 | v6e:4) size=2x2 ;;
    v5litepod:8 | v6e:8) size=2x4 ;;
    v5litepod:16 | v6e:16) size=4x4 ;;
    v5litepod:32 | v6e:32) size=4x8 ;;
    v5litepod:64 | v6e:64) size=8x8 ;;
    v5litepod:128 | v6e:128) size=8x16 ;;
    v5litepod:256 | v6e:256) size=16x16 ;;
    v4:8 | v5p:8) size=2x2x1 ;; # their sizes count two cores a chip
    v4:16 | v5p:16) size=2x2x2 ;;
    v4:32 | v5p:32) size=2x2x4 ;;
    v4:64 | v5p:64) size=2x4x4 ;;
    v4:128 | v5p:128) size=4x4x4 ;;
    *) refuse "--type=$type cannot be forecast: give python -m experiments.forecast its --topology" ;;
  esac
  echo "${kind/litepod/e}:$size"
}

run() {
  if [[ $dry_run ]]; then quoted "$@" >&3; else "$@"; fi
}

tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }

slice_state() { # READY, PREEMPTED, ...; nothing where there is no such slice
  local error status=0
  # stderr goes into the variable, stdout past it
  { error=$(tpu describe "$name" '--format=value(state)' 2>&1 >&4) || status=$?; } 4>&1
  [[ $status == 0 || $error == *NOT_FOUND* ]] && return
  echo "$error" >&2
  return "$status"
}

obtain_slice() {
  local state
  state=$(slice_state) || return
  case $state in
    READY) return ;;
    '') ;;
    PREEMPTED | TERMINATED) tpu delete "$name" --quiet || return ;;
    *)
      say "the slice $name is $state: wait until it is READY, or delete it"
      return 1
      ;;
  esac
  tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+"$spot"}
}

# Sent to every host: starts the job unless it runs already, shows its log, and ends with its exit code.
# The job does not hang on the connection, so that losing that costs nothing.
# shellcheck disable=SC2317
on_host() {
  local command
  command=$(printf '%q ' "$@")
  mkdir -p wayward_jax && cd wayward_jax || return
  exec 9> job.lock
  if flock --nonblock 9; then
    rm -f job.exit
    : > job.log
    echo "$command" > job.command
    (
      trap '' HUP
      # uv, because the Python of the slice's software may be too old.
      tar -xzf ../project.tar.gz &&
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv &&
        python3 -m uv venv --quiet --allow-existing --python '>=3.11' &&
        python3 -m uv pip install --quiet --editable '.[tpu,cloud]' &&
        .venv/bin/python -m experiments.run "$@"
      echo $? > job.exit
    ) < /dev/null >> job.log 2>&1 &
    echo $! > job.pid
  elif [[ $command != "$(cat job.command)" ]]; then
    echo "error: --name is a slice where another job runs ($(cat job.command)): name another slice" >&2
    return 2
  fi
  exec 9>&- # the job alone holds the lock now
  tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(cat job.pid)" job.log
  return "$(cat job.exit || echo 1)" # there is none if this was killed, too
}

run_job() {
  run mkdir -p "runs/$name" &&
    run tar -czf "$archive" --exclude=__pycache__ "${files[@]}" &&
    tpu scp "$archive" "$name:project.tar.gz" --worker=all &&
    tpu ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oConnectTimeout=30 \
      --command="$(declare -f on_host); on_host $(quoted "$@")"
}

copy_results() {
  case $out_dir in
    gs://*)
      run mkdir -p "runs/$name/${out_dir##*/}" &&
        run gcloud storage rsync --recursive "$out_dir" "runs/$name/${out_dir##*/}"
      ;;
    *) tpu scp --recurse "$name:wayward_jax/$out_dir" "runs/$name/" --worker=0 ;;
  esac
}

name='' zone='' type='' version='' project='' spot='' restarts=1000 wait=60 delete='' dry_run='' forecast='' out_dir=''
files=(setup.cfg pyproject.toml README.md LICENSE wayward_jax experiments)
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --help)
      usage
      exit
      ;;
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --spot) spot=$1 ;;
    --copy=?*)
      [[ -e ${1#*=} && ${1#*=} != /* && /${1#*=}/ != */../* ]] ||
        refuse "$1 is not in this project's folder: put it there and give its path from there"
      files+=("${1#*=}")
      ;;
    --restarts=?*) restarts=${1#*=} ;;
    --wait=?*) wait=${1#*=} ;;
    --delete) delete=$1 ;;
    --dry_run) dry_run=$1 ;;
    --forecast) forecast=$1 ;;
    *) refuse "$1 is no flag of launch_tpu.sh, or lacks its value: see --help; the job's flags stand after --" ;;
  esac
  shift
done
[[ $# == 0 ]] || shift
for flag; do
  [[ $flag != --out_dir=* ]] || out_dir=${flag#*=}
done

if [[ $forecast && $type ]]; then
  topology=$(topology) || exit
  exec 3>&1
  run python3 -m experiments.forecast --topology="$topology" "$@"
  exit
fi
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  refuse "--name=$name does not name a slice: give small letters, digits and dashes, like --name=wayward"
[[ $zone =~ ^[a-z0-9-]+$ ]] || refuse "--zone=$zone is not a zone: give one like --zone=us-west4-a"
[[ $type =~ ^v[0-9][a-z]*-[0-9]+$ ]] ||
  refuse "--type=$type is not an accelerator type: give one like --type=v5litepod-16"
[[ $restarts =~ ^[0-9]{1,9}$ ]] || refuse "--restarts=$restarts is not a whole number: give one from 0 on"
[[ $wait =~ ^[0-9]{1,9}$ ]] || refuse "--wait=$wait is not a whole number: give seconds from 0 on"
while [[ $out_dir == *?/ ]]; do out_dir=${out_dir%/}; done
case $out_dir in
  '') refuse "--out_dir is missing: give --out_dir=gs://BUCKET/JOB after --" ;;
  gs://?*/?*) ;;
  *://* | gs:* | /* | ~* | . | .. | ../* | */.. | */../*)
    refuse "--out_dir=$out_dir cannot be copied back: give --out_dir=gs://BUCKET/JOB, or a folder like runs/JOB"
    ;;
  *)
    [[ -z $spot ]] ||
      refuse "--out_dir=$out_dir is lost with a slice that is --spot: give --out_dir=gs://BUCKET/JOB"
    ;;
esac
[[ $dry_run ]] || command -v gcloud > /dev/null || refuse "gcloud is not on the PATH: install the Google Cloud CLI"

if [[ -z $version ]]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
where=(--zone="$zone" ${project:+--project="$project"})
archive=runs/$name/project.tar.gz
exec 3>&1

for ((left = restarts, started = 0; ; left--)); do
  code=0
  if obtain_slice; then
    started=1
    run_job "$@" || code=$?
    case $code in
      0 | 2) break ;;
      75) reason="the job was told to stop, and saved" ;;
      *)
        state=$(slice_state) || break
        [[ $state != READY ]] || break
        reason="the slice is ${state:-gone}"
        ;;
    esac
  else
    code=$?
    ((started)) || exit "$code"
    reason="there is no slice yet"
  fi
  if ((left == 0)); then
    say "$reason, and no try is left: the same command continues from here"
    exit "$code"
  fi
  say "$reason; next try in $wait s"
  sleep "$wait"
done

if ((code != 2)) && ! copy_results; then
  say "$out_dir could not be copied to runs/$name"
  ((code)) || code=1
fi
if [[ $delete && $code == 0 ]]; then
  tpu delete "$name" --quiet
else
  say "the slice stays, and costs, until: $(quoted gcloud compute tpus tpu-vm delete "$name" "${where[@]}")"
fi
exit "$code"
