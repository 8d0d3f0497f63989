# shellcheck shell=bash disable=SC2154
. "$tree/scripts/dev/visit/settings.sh"
arrived sglang 600 && add sglang -e "$sglang"
if [ -n "${tuning[*]:-}" ]; then
  # GPUs are measured one thing at a time.
  wait "${tuning[@]}"
  mkdir -p "$home/moe"
  cp "$home"/out/moe-*/E=*.json "$home/moe/"
  cat "$home"/out/moe-*.log | grep 'x):'
fi
