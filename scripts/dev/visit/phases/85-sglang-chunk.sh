# shellcheck shell=bash disable=SC2154
# SGLang with a larger chunk alone, bf16 KV. Not run yet.
. "$tree/scripts/dev/visit/settings.sh"
forget sglang-chunk16k
deploy sglang-chunk16k -e "$sglang" -e '{"engine_context_tokens": 1048576, "engine_max_num_batched_tokens": 16384,
  "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
