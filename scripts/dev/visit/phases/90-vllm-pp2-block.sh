# shellcheck shell=bash disable=SC2154
# Two stages with block-wise fp8 weights (DeepGEMM). Its kernels are compiled at first use: the short prompts come first. Not run yet.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2-block
deploy vllm-pp2-block -e "$vllm" -e "{$hold}" -e '{"engine_pipeline_parallel": 2, "engine_block_size_tokens": 128,
  "engine_gpu_memory_utilization": 0.92,
  "engine_quantization": "fp8_per_block", "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
