# shellcheck shell=bash disable=SC2154
# The other attention backend that serves Llama-4 on Hopper.
. "$tree/scripts/dev/visit/settings.sh"
choice vllm-triton '{"engine_attention_backend": "TRITON_ATTN"}'
