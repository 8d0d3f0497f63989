# shellcheck shell=bash disable=SC2154
# A prefill chunk of 32,768 tokens, on pages of 128.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-chunk32k '{"engine_block_size_tokens": 128, "engine_max_num_batched_tokens": 32768}'
