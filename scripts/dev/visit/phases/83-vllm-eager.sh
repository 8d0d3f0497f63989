# shellcheck shell=bash disable=SC2154
# No graphs and no torch.compile, on pages of 128.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-eager '{"engine_block_size_tokens": 128, "engine_enforce_eager": true}'
