# shellcheck shell=bash disable=SC2154
# SGLang with fp8 KV and a larger chunk. Pages stay at one token: before 0.5.20 larger ones are wrong for Llama-4.
. "$tree/scripts/dev/visit/settings.sh"
forget sglang-tuned
deploy sglang-tuned -e "$sglang" -e '{"engine_context_tokens": 1048576, "engine_kv_cache_dtype": "fp8_e4m3",
  "engine_max_num_batched_tokens": 16384, "context_test_ladder_tokens": [10000, 100000, 500000, 1000000], "context_test_points": []}'
