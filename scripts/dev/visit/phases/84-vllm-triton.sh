# shellcheck shell=bash disable=SC2154
# The other attention backend that serves Llama-4 on Hopper, on pages of 128; the short prompt only, for the time it takes.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-triton '{"engine_block_size_tokens": 128, "engine_attention_backend": "TRITON_ATTN", "context_test_ladder_tokens": [100000]}'
