# shellcheck shell=bash disable=SC2154
# vLLM in two stages instead of two halves, KV pages of 128 tokens; as a burn-in, which also measures the all-reduce. The million is
# left to SGLang's turn where that engine runs: the time is short.
. "$tree/scripts/dev/visit/settings.sh"
forget vllm-pp2
ladder='[10000, 100000, 500000, 1000000]'
[ -f "$home/results/sglang-tp2/gpu-run.json" ] && ladder='[10000, 100000, 500000]'
burnin vllm-pp2 -e "$vllm" -e '{"engine_pipeline_parallel": 2, "engine_block_size_tokens": 128, "engine_context_tokens": 1048576,
  "burnin_ladder_tokens": '"$ladder"', "burnin_output_tokens": 64}'
