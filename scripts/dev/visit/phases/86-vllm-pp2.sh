# shellcheck shell=bash disable=SC2154
# vLLM in two stages instead of two halves, KV pages of 128 tokens: several at once, and on H200 the million. At the share
# that the halves have on H100 it died of its first request: the engine's own leaves NCCL room.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2
deploy vllm-pp2 -e "$vllm" -e "{$hold}" -e "{\"context_test_ladder_tokens\": [10000, 100000$million]}" -e '{"engine_pipeline_parallel": 2,
  "engine_block_size_tokens": 128, "engine_gpu_memory_utilization": 0.92, "context_test_points": [
  {"input_tokens": 10000, "output_tokens": 64, "concurrency": 4}, {"input_tokens": 10000, "output_tokens": 64, "concurrency": 16},
  {"input_tokens": 100000, "output_tokens": 64, "concurrency": 4}]}'
