# shellcheck shell=bash disable=SC2154
# vLLM as it comes: what the phases 81 to 87 are held against, on the same machine.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-default '{}'
