# shellcheck shell=bash disable=SC2154
# FlashAttention 3 alone, by KV page and dtype, from a carried copy of vllm_flash_attn ($home/fa3): what a larger page can bring.
if [ -d "$home/fa3/vllm_flash_attn" ]; then
  step attention-vllm timeout 120 python3 "$tree/scripts/dev/visit/attention_bench.py" --path "$home/fa3" --package vllm_flash_attn \
    --out "$home/out/attention-vllm"
fi
