# shellcheck shell=bash disable=SC2154
# vLLM TP2, KV pages of 128 tokens, MoE tiles measured on this GPU; as a burn-in, which also measures the all-reduce.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-tp2-tuned
burnin vllm-tp2-tuned -e "$vllm_tuned" -e '{"gpu_run_gpus": 2, "engine_block_size_tokens": 128, "engine_context_tokens": 1048576,
  "burnin_ladder_tokens": [10000, 100000, 500000, 1000000], "burnin_output_tokens": 64}'
