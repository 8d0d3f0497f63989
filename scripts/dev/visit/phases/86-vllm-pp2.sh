# shellcheck shell=bash disable=SC2154
# vLLM in two stages instead of two halves, KV pages of 128 tokens: several at once.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2
deploy vllm-pp2 -e "$vllm" -e "{$hold}" -e '{"engine_pipeline_parallel": 2, "engine_block_size_tokens": 128,
  "context_test_ladder_tokens": [10000, 100000], "context_test_points": [
  {"input_tokens": 10000, "output_tokens": 64, "concurrency": 4}, {"input_tokens": 10000, "output_tokens": 64, "concurrency": 16},
  {"input_tokens": 100000, "output_tokens": 64, "concurrency": 4}]}'
