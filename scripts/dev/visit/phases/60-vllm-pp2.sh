# shellcheck shell=bash disable=SC2154
# vLLM in two stages instead of two halves, KV pages of 128 tokens. The million is not run yet. Few graphs are captured: only decode uses them, and the start is shorter.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2
deploy vllm-pp2 -e "$vllm" -e '{"engine_pipeline_parallel": 2, "engine_block_size_tokens": 128, "engine_context_tokens": 1048576,
  "engine_extra_args": ["--cudagraph-capture-sizes", "1", "2", "4", "8", "16"],
  "context_test_ladder_tokens": [100000, 500000, 1000000], "context_test_points": []}'
