#!/usr/bin/env bash
# Measure Longhaul on a GPU host without network: one or two GPUs, any model. docs/gpu-visit.md shows a whole visit.
#
# A daemon works through a queue of jobs, so that pieces of the next engine can arrive while one is measured.
#
#   gpu-visit.sh receive DIR [BUNDLE]      take the pieces and the manifest of a bundle (default: vllm) and tree.tar.gz from DIR
#   gpu-visit.sh add NAME JOB [WORDS ...]  queue a job; jobs run one at a time, in the order of their names (10-..., 20-...):
#       install BUNDLE [WORDS]     wait for the bundle, install it and the engine that WORDS name
#       deploy [WORDS]             stop what runs, forget it, deploy and validate anew
#       burnin [WORDS]             the same as a burn-in
#       validate [WORDS]           measure what is deployed again, e.g. with other points
#       run COMMAND [ARGUMENTS]    anything else, e.g. a bench of benchmarks/
#       end                        stop the engine, end the daemon
#   gpu-visit.sh start                     start the daemon; its log is $VISIT_HOME/visit.log
#   gpu-visit.sh follow DIR SECONDS [NAME] wait for a job (default: the daemon's end), then collect; fails without a daemon
#   gpu-visit.sh collect DIR               pack results, logs and timings into DIR
#
# WORDS go to ansible-playbook, e.g. -e '{"engine_context_tokens": 1048576}'. A job's results lie in $VISIT_HOME/results/NAME.
# VISIT_HOME (default /var/tmp/longhaul-visit) keeps everything. VISIT_GPUS is the number of GPUs (default: all that nvidia-smi
# shows). VISIT_MODEL is a shipped model or a folder with config.json (default: llama-4-scout-text). VISIT_CUDA is CUDA's folder
# (default: found by nvcc). VISIT_CPU=1 tries the same steps without a GPU, with the network; VISIT_TREE and VISIT_ANSIBLE then name this
# checkout and its environment's bin.
set -uo pipefail
home=${VISIT_HOME:-/var/tmp/longhaul-visit}
tree=${VISIT_TREE:-$home/tree}
model=${VISIT_MODEL:-llama-4-scout-text}
self=$(readlink -f "$0")
# The daemon ends when nothing was queued for this long.
idle_limit_s=900

usage() { sed -n '2,/^set /{/^set /!p}' "$self"; }

note() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*" | tee -a "$home/out/timeline.txt"; }

# step NAME COMMAND...: keep a command's time, output and exit code.
step() {
  local name=$1 began ended code
  shift
  began=$(date +%s.%N)
  note "$name: start: $*"
  "$@" >"$home/out/$name.log" 2>&1
  code=$?
  ended=$(date +%s.%N)
  note "$name: exit $code after $(python3 -c "print(f'{$ended - $began:.1f}')") s"
  printf '%s\t%s\t%s\t%s\n' "$name" "$began" "$ended" "$code" >>"$home/out/steps.tsv"
  return "$code"
}

receive() {
  local bundle=$home/bundles/${2:-vllm} file
  mkdir -p "$bundle/pieces"
  # A piece gets its name only when it is whole: the daemon looks for it meanwhile.
  for file in "$1"/piece-*; do
    [ -f "$file" ] && cp "$file" "$bundle/arriving" && mv "$bundle/arriving" "$bundle/pieces/${file##*/}"
  done
  for file in manifest.json join.sh SHA256SUMS; do [ -f "$1/$file" ] && cp "$1/$file" "$bundle/"; done
  if [ -f "$1/tree.tar.gz" ]; then rm -rf "$tree" && mkdir -p "$tree" && tar -xzf "$1/tree.tar.gz" -C "$tree"; fi
  # Debian packages of shared libraries that a bare image lacks.
  for file in "$1"/*.deb; do [ -f "$file" ] && dpkg -x "$file" / && ldconfig; done
  find "$bundle/pieces" -type f -printf '%f '
}

# arrived BUNDLE SECONDS: wait until every piece that the bundle's manifest lists is there.
arrived() {
  local bundle=$home/bundles/$1 left=$2
  until [ -f "$bundle/manifest.json" ] && (cd "$bundle/pieces" && python3 -c '
import json, os, sys
sys.exit(any(not os.path.exists(row["name"]) for row in json.load(open("../manifest.json"))["pieces"]))'); do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { note "$1: pieces are missing"; return 1; }
    sleep 1
  done
}

# Every bundle's wheels end in one folder, which is the wheelhouse of all plays.
join() { sh "$home/bundles/$1/join.sh" && cp -lf "$home/bundles/$1/wheels/"*.whl "$home/wheels/"; }

controller() {
  python3 -m venv --without-pip "$home/controller" &&
    "$home/controller/bin/python" "$(ls -d "$home/wheels"/pip-*.whl)/pip" install --quiet --no-index --find-links "$home/wheels" \
      --no-deps --requirement "$tree/roles/engine/files/locks/controller.lock"
}

gpus() { echo "${VISIT_GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | grep -c . || true)}"; }

# CUDA's own folder, for kernels that are compiled at first use. An image with torch may keep the run-time library elsewhere.
cuda_home() {
  local cuda runtime part
  cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")
  if [ ! -e "$cuda/lib64/libcudart.so" ] && command -v nvcc >/dev/null; then
    runtime=$(find / -xdev -name 'libcudart.so.1*' -not -path '/proc/*' 2>/dev/null | head -1)
    mkdir -p "$home/cuda/lib64"
    for part in bin include nvvm; do [ -e "$cuda/$part" ] && ln -sfn "$cuda/$part" "$home/cuda/$part"; done
    [ -n "$runtime" ] && ln -sf "$runtime" "$home/cuda/lib64/libcudart.so"
    cuda=$home/cuda
  fi
  echo "$cuda"
}

# What every play of a visit gets: the GPUs, the model, and an environment that lets each engine run on a bare image. NVLink multicast
# stays off, since the host's GPUs may be shared. The hooks in PYTHONPATH are loaded by every process of the engine.
settings() {
  VISIT_GPU_COUNT=$(gpus) VISIT_MODEL_NAME=$model VISIT_HOOKS=$tree/scripts/dev/gpu-visit python3 -c '
import json, os
print(json.dumps({
    "gpu_run_gpus": int(os.environ["VISIT_GPU_COUNT"] or 1),
    "model_store_dummy": os.environ["VISIT_MODEL_NAME"],
    "engine_served_model_name": os.path.basename(os.environ["VISIT_MODEL_NAME"]),
    "engine_extra_env": {
        "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
        "NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "8", "CUDA_HOME": os.environ["VISIT_CUDA"], "PYTHONPATH": os.environ["VISIT_HOOKS"],
    },
}))'
}

# play PLAYBOOK WORDS...: WORDS come last and win.
play() {
  local book=$1
  shift
  local words=(-i "${VISIT_INVENTORY:-inventory/gpu-run}" -e "longhaul_home=$home/home" -e "context_test_results_dir=$home/results"
    -e "report_results_dir=$home/results")
  if [ -n "${VISIT_CPU:-}" ]; then
    words+=(-e "@$tree/scripts/dev/gpu-visit/cpu.json")
  else
    words+=(-e "longhaul_wheelhouse=$home/wheels" -e "$(settings)")
  fi
  (cd "$tree" && ANSIBLE_FORCE_COLOR=0 ANSIBLE_LOCALHOST_WARNING=0 LC_ALL=C.UTF-8 \
    "${VISIT_ANSIBLE:-$home/controller/bin}/ansible-playbook" "$book" "${words[@]}" "$@")
}

record_host() {
  {
    date -u
    uname -a
    nproc
    free -g
    df -h "$home"
    command -v python3 nvcc
    python3 -V
    nvidia-smi
    nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,ECC,PERFORMANCE
    python3 -m pip list --format=freeze
  } >"$home/out/host.txt" 2>&1
}

watch_gpus() {
  exec nvidia-smi --format=csv -l 2 \
    --query-gpu=timestamp,index,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,memory.used,clocks_event_reasons.active \
    >>"$home/out/gpu.csv" 2>&1
}

keep_log() { cat "$home/home/logs/"*.log >"$home/out/engine-$1.log" 2>/dev/null; true; }

# Stop, and forget what was deployed: a configuration that fails must not be followed by a return to the one before it.
forget() {
  step "stop-before-$1" play playbooks/stop.yml
  rm -rf "$home/home/spec"
}

# job NAME JOB WORDS...: what the daemon does with one entry of the queue.
job() {
  local name=$1 kind=$2
  shift 2
  case $kind in
    install)
      local bundle=$1
      shift
      [ -f "$home/out/host.txt" ] || record_host
      # Without a GPU the packages come from the index: there is no bundle.
      if [ -z "${VISIT_CPU:-}" ]; then
        arrived "$bundle" 900 && step "$name-join" join "$bundle" || return 1
        [ -x "$home/controller/bin/ansible-playbook" ] || step "$name-controller" controller || return 1
      fi
      step "$name" play playbooks/provision.yml "$@"
      ;;
    deploy) forget "$name" && step "$name" play deploy.yml -e "longhaul_run_id=$name" --skip-tags provision "$@" ;;
    burnin) forget "$name" && step "$name" play playbooks/burnin.yml -e "longhaul_run_id=$name" "$@" ;;
    validate) step "$name" play playbooks/validate.yml -e "longhaul_run_id=$name" "$@" ;;
    run) (cd "$tree" && step "$name" "$@") ;;
    end)
      step "$name" play playbooks/stop.yml
      : >"$home/ended"
      ;;
  esac
  local code=$?
  keep_log "$name"
  return "$code"
}

add() {
  local name=$1
  case ${2:-} in
    install) [ $# -ge 3 ] || { echo "add NAME install BUNDLE [WORDS]" >&2; return 2; } ;;
    run) [ $# -ge 3 ] || { echo "add NAME run COMMAND [ARGUMENTS]" >&2; return 2; } ;;
    deploy | burnin | validate | end) ;;
    *) usage >&2; return 2 ;;
  esac
  shift
  # Quoted, so that the daemon reads the same words; renamed when whole.
  printf '%q ' "$@" >"$home/queue/.arriving" && mv "$home/queue/.arriving" "$home/queue/$name"
}

# next_job: the first queued name that is not done.
next_job() {
  local path
  for path in "$home"/queue/*; do
    [ -f "$path" ] && [ ! -e "$home/done/${path##*/}" ] && echo "${path##*/}" && return
  done
}

work() {
  local watcher='' idle=0 name
  rm -f "$home/ended"
  # Once, since it may search the whole disk.
  VISIT_CUDA=${VISIT_CUDA:-$(cuda_home)}
  export VISIT_CUDA
  if command -v nvidia-smi >/dev/null; then watch_gpus & watcher=$!; fi
  while [ ! -e "$home/ended" ] && [ "$idle" -lt "$idle_limit_s" ]; do
    name=$(next_job)
    if [ -z "$name" ]; then
      sleep 1
      idle=$((idle + 1))
      continue
    fi
    idle=0
    local words=()
    eval "words=($(<"$home/queue/$name"))"
    note "job $name: ${words[*]}"
    job "$name" "${words[@]}" || note "job $name failed"
    : >"$home/done/$name"
  done
  [ -n "$watcher" ] && kill "$watcher"
  note "end"
}

# Fails at once where no daemon runs: the time of a host that a visit never began on counts too.
follow() {
  [ -f "$home/visit.log" ] || { echo "no visit here: $home/visit.log is missing"; return 9; }
  local left=$2 name=${3:-}
  while [ "$left" -gt 0 ] && ! { [ -n "$name" ] && [ -e "$home/done/$name" ]; } && ! tail -n 1 "$home/visit.log" | grep -q ' end$'; do
    sleep 1
    left=$((left - 1))
  done
  tail -n 14 "$home/visit.log" | cut -c1-200
  collect "$1"
}

# The host's own copies too: a point that was measured is kept even if its play did not end.
collect() {
  local parts=() part log
  mkdir -p "$1"
  cp "$home/out/timeline.txt" "$1/" 2>/dev/null
  for part in results home/results; do [ -d "$home/$part" ] && parts+=("$part"); done
  [ ${#parts[@]} -gt 0 ] && tar -C "$home" -czf "$1/results.tar.gz" "${parts[@]}"
  tar -C "$home" -czf "$1/out.tar.gz" out
  for log in "$home"/home/logs/*.log; do [ -f "$log" ] && gzip -c "$log" >"$1/engine-now.log.gz"; done
  true
}

case ${1:-} in
  receive | add | start | work | follow | collect) mkdir -p "$home/wheels" "$home/out" "$home/queue" "$home/done" ;;
  *) usage; exit 2 ;;
esac
case $1 in
  receive) receive "$2" "${3:-}" ;;
  add) shift && add "$@" ;;
  start) setsid bash "$self" work >"$home/visit.log" 2>&1 </dev/null & ;;
  work) work ;;
  follow) follow "$2" "${3:-500}" "${4:-}" ;;
  collect) collect "$2" ;;
esac
