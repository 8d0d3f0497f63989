# shellcheck shell=bash disable=SC2154
# SGLang with its own chunk and KV dtype, the same prompts. The local pool's share is set: with its default the million does not fit.
. "$tree/scripts/dev/visit/settings.sh"
forget sglang-tp2
deploy sglang-tp2 -e "$sglang" -e '{"engine_context_tokens": 1048576, "context_test_flush": false, "context_test_cache_salt": false,
  "context_test_ladder_tokens": [10000, 100000, 500000, 1000000], "context_test_points": []}'
validate sglang-tp2-contaminated -e "$sglang" -e '{"engine_context_tokens": 1048576, "context_test_flush": false, "context_test_cache_salt": false,
  "context_test_ladder_tokens": [1000000], "context_test_points": []}'
validate sglang-tp2-load -e "$sglang" -e '{"engine_context_tokens": 1048576, "context_test_ladder_tokens": [10000, 100000],
  "context_test_concurrency": [1, 4, 16], "context_test_points": []}'
keep_log sglang-tp2
