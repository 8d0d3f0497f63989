# shellcheck shell=bash disable=SC2154
# No graphs and no torch.compile.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-eager '{"engine_enforce_eager": true}'
