# shellcheck shell=bash disable=SC2154
# SGLang with a larger chunk alone, bf16 KV, after the same with its own chunk. The first start on a machine meets a stall at its first
# 500,000 tokens; the second does not: the chunk is compared at both lengths, each after a start of its own.
. "$tree/scripts/dev/visit/settings.sh"
for chunk in 8192 16384; do
  forget "sglang-chunk$chunk"
  deploy "sglang-chunk$chunk" -e "$sglang" -e "{$hold_sglang}" -e "{\"engine_max_num_batched_tokens\": $chunk,
    \"context_test_ladder_tokens\": [10000, 100000, 500000], \"context_test_points\": []}"
done
