#!/usr/bin/env bash
# Measure Longhaul on a bare GPU host without network. A daemon works through a queue of phases, so that pieces of the next engine
# can arrive while one is measured, and what comes next can be decided from what was found:
#   gpu-visit.sh receive DIR [NAME]  take pieces and manifest of the bundle NAME (vllm), and the tree (tree.tar.gz), from DIR
#   gpu-visit.sh enqueue FILE ...    more phases (scripts/dev/visit/phases), worked through in the order of their names, each once
#   gpu-visit.sh start               the daemon; its log is $VISIT_HOME/visit.log; ends after the phase 99-end
#   gpu-visit.sh follow DIR S [PHASE]  wait for a phase (99-end), S seconds at most, then collect; fails at once without a daemon
#   gpu-visit.sh collect DIR         copy results, logs and timings to DIR, packed
# VISIT_HOME (default /var/tmp/longhaul-visit) keeps everything. VISIT_CPU=1 tries the same steps without a GPU.
set -uo pipefail
home=${VISIT_HOME:-/var/tmp/longhaul-visit}
tree=${VISIT_TREE:-$home/tree}
self=$(readlink -f "$0")
mkdir -p "$home/wheels" "$home/out" "$home/queue" "$home/done"

note() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*" | tee -a "$home/out/timeline.txt"; }

# step NAME COMMAND...: time it, keep its output, go on whatever comes of it.
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
  local bundle=$home/bundles/${2:-vllm} piece
  mkdir -p "$bundle/pieces"
  # Under its own name only when it is whole: the daemon looks for it meanwhile.
  for piece in "$1"/piece-*; do
    [ -f "$piece" ] && cp "$piece" "$bundle/arriving" && mv "$bundle/arriving" "$bundle/pieces/${piece##*/}"
  done
  for name in manifest.json join.sh SHA256SUMS; do [ -f "$1/$name" ] && cp "$1/$name" "$bundle/"; done
  if [ -f "$1/tree.tar.gz" ]; then rm -rf "$tree" && mkdir -p "$tree" && tar -xzf "$1/tree.tar.gz" -C "$tree"; fi
  # Debian packages of shared libraries that a bare image lacks.
  for deb in "$1"/*.deb; do [ -f "$deb" ] && dpkg -x "$deb" / && ldconfig; done
  ls "$bundle/pieces" | tr '\n' ' '
}

# arrived NAME S: wait until every piece that the bundle's manifest lists is there.
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
join() {
  sh "$home/bundles/$1/join.sh" && cp -lf "$home/bundles/$1/wheels/"*.whl "$home/wheels/"
}

controller() {
  python3 -m venv --without-pip "$home/controller" &&
    "$home/controller/bin/python" "$(ls -d "$home/wheels"/pip-*.whl)/pip" install --quiet --no-index --find-links "$home/wheels" \
      --no-deps --requirement "$tree/roles/engine/files/locks/controller.lock"
}

play() {
  local book=$1
  shift
  local words=(-i "${VISIT_INVENTORY:-inventory/gpu-run}" -e "longhaul_home=$home/home" -e "context_test_results_dir=$home/results"
    -e "report_results_dir=$home/results")
  [ -z "${VISIT_CPU:-}" ] && words+=(-e "longhaul_wheelhouse=$home/wheels")
  [ -n "${VISIT_CPU:-}" ] && words+=(-e "@$tree/scripts/dev/gpu-visit-cpu.json")
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

watch_gpu() {
  exec nvidia-smi --query-gpu=timestamp,index,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,memory.used,clocks_event_reasons.active \
    --format=csv -l 2 >>"$home/out/gpu.csv" 2>&1
}

install() {
  record_host
  step join join vllm || return 1
  step controller controller || return 1
  step provision play playbooks/provision.yml "$@" || return 1
}

# One more engine.
add() {
  local name=$1
  shift
  step "join-$name" join "$name" && step "provision-$name" play playbooks/provision.yml "$@"
}

# deploy NAME words...: one configuration through the front door, under its own run id.
deploy() {
  local name=$1
  shift
  step "deploy-$name" play deploy.yml -e "longhaul_run_id=$name" --skip-tags provision "$@"
  keep_log "$name"
}

burnin() {
  local name=$1
  shift
  step "burnin-$name" play playbooks/burnin.yml -e "longhaul_run_id=$name" "$@"
  keep_log "$name"
}

validate() {
  local name=$1
  shift
  step "validate-$name" play playbooks/validate.yml -e "longhaul_run_id=$name" "$@"
}

keep_log() { cat "$home/home/logs/"*.log >"$home/out/engine-$1.log" 2>/dev/null; true; }

# Stop, and forget what was deployed: a configuration that fails is then not followed by a return to the one before it.
forget() {
  step "stop-before-${1:-next}" play playbooks/stop.yml
  rm -rf "$home/home/spec"
}

# The daemon: phases in the order of their names, each once, until 99-end; waits 15 minutes for the next one.
work() {
  local watcher= idle=0 phase name
  if command -v nvidia-smi >/dev/null; then watch_gpu & watcher=$!; fi
  while [ ! -e "$home/done/99-end" ] && [ "$idle" -lt 900 ]; do
    name=$(cd "$home/queue" && for phase in *.sh; do [ -f "$phase" ] && [ ! -e "$home/done/${phase%.sh}" ] && echo "${phase%.sh}" && break; done)
    if [ -z "$name" ]; then
      sleep 1
      idle=$((idle + 1))
      continue
    fi
    idle=0
    note "phase $name"
    # shellcheck disable=SC1090
    . "$home/queue/$name.sh"
    : >"$home/done/$name"
  done
  [ -n "$watcher" ] && kill "$watcher"
  note "end"
}

enqueue() {
  local file
  for file in "$@"; do cp "$file" "$home/queue/.arriving" && mv "$home/queue/.arriving" "$home/queue/${file##*/}"; done
}

# A host that a visit never began on must not be waited for: its time counts.
follow() {
  [ -f "$home/visit.log" ] || { echo "no visit here: $home/visit.log is missing"; return 9; }
  local left=$2 phase=${3:-99-end}
  while [ "$left" -gt 0 ] && [ ! -e "$home/done/$phase" ] && ! tail -n 1 "$home/visit.log" | grep -q ' end$'; do sleep 1; left=$((left - 1)); done
  tail -n 14 "$home/visit.log" | cut -c1-200
  collect "$1"
}

collect() {
  mkdir -p "$1"
  cp "$home/out/timeline.txt" "$1/" 2>/dev/null
  # The host's own copies too: a point that was measured is kept even if its play did not end.
  local parts
  parts=$(cd "$home" && ls -d results home/results 2>/dev/null)
  # shellcheck disable=SC2086
  [ -n "$parts" ] && tar -C "$home" -czf "$1/results.tar.gz" $parts
  tar -C "$home" -czf "$1/out.tar.gz" out
  for log in "$home"/home/logs/*.log; do [ -f "$log" ] && gzip -c "$log" >"$1/engine-now.log.gz"; done
  true
}

case ${1:-} in
  receive) receive "$2" "${3:-}" ;;
  enqueue) shift && enqueue "$@" ;;
  start) setsid bash "$self" work >"$home/visit.log" 2>&1 </dev/null & ;;
  work) work ;;
  follow) follow "$2" "${3:-500}" "${4:-}" ;;
  collect) collect "$2" ;;
  *) sed -n 2,9p "$self"; exit 2 ;;
esac
