# shellcheck shell=bash disable=SC2154
# vLLM as it comes, on both GPUs: cold ladder to a million tokens, the longest prompt once more from its cache, then 1, 4 and 16 at once.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-tp2
deploy vllm-tp2 -e "$vllm" -e '{"gpu_run_gpus": 2, "engine_context_tokens": 1048576, "context_test_flush": false,
  "context_test_cache_salt": false, "context_test_ladder_tokens": [10000, 100000, 500000, 1000000], "context_test_points": []}'
validate vllm-tp2-contaminated -e '{"gpu_run_gpus": 2, "engine_context_tokens": 1048576, "context_test_flush": false, "context_test_cache_salt": false,
  "context_test_ladder_tokens": [1000000], "context_test_points": []}'
validate vllm-tp2-load -e '{"gpu_run_gpus": 2, "engine_context_tokens": 1048576, "context_test_ladder_tokens": [10000, 100000], "context_test_concurrency": [1, 4, 16],
  "context_test_points": []}'
keep_log vllm-tp2
