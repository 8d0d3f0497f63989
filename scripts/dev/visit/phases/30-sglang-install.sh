# shellcheck shell=bash disable=SC2154
. "$tree/scripts/dev/visit/settings.sh"
arrived sglang 600 && add sglang -e "$sglang"
