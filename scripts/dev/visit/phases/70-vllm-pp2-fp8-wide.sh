# shellcheck shell=bash disable=SC2154
# Experiment: fp8 KV in pages that the tensor memory accelerator can load. Needs a hook in the engine, so it is no variable set.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2-fp8-wide
deploy vllm-pp2-fp8-wide -e "$vllm_wide" -e '{"engine_pipeline_parallel": 2, "engine_context_tokens": 1048576,
  "engine_kv_cache_dtype": "fp8", "context_test_ladder_tokens": [10000, 100000, 500000, 1000000], "context_test_points": []}'
