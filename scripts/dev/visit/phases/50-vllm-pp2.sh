# shellcheck shell=bash disable=SC2154
# vLLM in two stages instead of two halves, KV pages of 128 tokens; as a burn-in, which also measures the all-reduce. Not run to its end yet.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2
burnin vllm-pp2 -e "$vllm" -e '{"engine_pipeline_parallel": 2, "engine_block_size_tokens": 128, "engine_context_tokens": 1048576,
  "burnin_ladder_tokens": [10000, 100000, 500000, 1000000], "burnin_output_tokens": 64}'
