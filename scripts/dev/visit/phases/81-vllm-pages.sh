# shellcheck shell=bash disable=SC2154
# KV pages of 128 tokens, nothing else.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-pages '{"engine_block_size_tokens": 128}'
