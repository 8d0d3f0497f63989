#!/usr/bin/env bash
# Measure Longhaul on a bare GPU host without network, in stages that each end by themselves:
#   gpu-visit.sh receive DIR [NAME]  take pieces and manifest of the bundle NAME (vllm), and the tree (tree.tar.gz), from DIR
#   gpu-visit.sh install          join the bundle vllm, make the controller, install by the playbook
#   gpu-visit.sh add NAME ...     join one more bundle and install its engine with these words for the playbook
#   gpu-visit.sh measure          every configuration of VISIT_PLAN, one after another
#   gpu-visit.sh all              install and measure, as a daemon; its log is $VISIT_HOME/visit.log
#   gpu-visit.sh follow DIR S     wait for the daemon's end, S seconds at most, then collect; fails at once where no daemon was started
#   gpu-visit.sh collect DIR      copy results, logs and timings to DIR, packed
# VISIT_HOME (default /var/tmp/longhaul-visit) keeps everything. VISIT_CPU=1 tries the same steps without a GPU.
set -uo pipefail
home=${VISIT_HOME:-/var/tmp/longhaul-visit}
tree=${VISIT_TREE:-$home/tree}
self=$(readlink -f "$0")
mkdir -p "$home/wheels" "$home/out"

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
  local bundle=$home/bundles/${2:-vllm}
  mkdir -p "$bundle/pieces"
  mv "$1"/piece-* "$bundle/pieces/" 2>/dev/null
  for name in manifest.json join.sh SHA256SUMS; do [ -f "$1/$name" ] && cp "$1/$name" "$bundle/"; done
  if [ -f "$1/tree.tar.gz" ]; then rm -rf "$tree" && mkdir -p "$tree" && tar -xzf "$1/tree.tar.gz" -C "$tree"; fi
  # Debian packages of shared libraries that a bare image lacks.
  for deb in "$1"/*.deb; do [ -f "$deb" ] && dpkg -x "$deb" / && ldconfig; done
  ls "$bundle/pieces" | tr '\n' ' '
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
  step provision play playbooks/provision.yml || return 1
}

# One more engine; can run beside a measurement.
add() {
  local name=$1
  shift
  step "join-$name" join "$name" && step "provision-$name" play playbooks/provision.yml "$@"
}

# configure NAME DEPLOY|VALIDATE words...: one configuration through the front door, under its own run id.
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

restart() {
  step "stop-$1" play playbooks/stop.yml
  step "start-$1" play playbooks/start.yml
  keep_log "restart-$1"
}

measure() {
  local watcher=
  if command -v nvidia-smi >/dev/null; then watch_gpu & watcher=$!; fi
  # shellcheck disable=SC1090
  . "${VISIT_PLAN:-$tree/scripts/dev/gpu-visit-plan.sh}"
  step stop-last play playbooks/stop.yml
  [ -n "$watcher" ] && kill "$watcher"
  note "measured all"
}

# A host that a visit never began on must not be waited for: its time counts.
follow() {
  [ -f "$home/visit.log" ] || { echo "no visit here: $home/visit.log is missing"; return 9; }
  local left=$2
  while [ "$left" -gt 0 ] && ! grep -q ' end$' "$home/visit.log"; do sleep 1; left=$((left - 1)); done
  tail -n 12 "$home/visit.log" | cut -c1-160
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
  add) shift && add "$@" ;;
  install) install ;;
  measure) measure ;;
  all) setsid bash "$self" both >"$home/visit.log" 2>&1 </dev/null & ;;
  both) install && measure; note "end" ;;
  follow) follow "$2" "${3:-500}" ;;
  collect) collect "$2" ;;
  *) sed -n 2,12p "$self"; exit 2 ;;
esac
