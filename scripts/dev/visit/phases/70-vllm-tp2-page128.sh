# shellcheck shell=bash disable=SC2154
# vLLM TP2 with KV pages of 128 tokens, and the defaults beside it on the same machine. Not run yet.
. "$tree/scripts/dev/visit/settings.sh"
common='"gpu_run_gpus": 2, "engine_context_tokens": 1048576, "context_test_ladder_tokens": [100000, 500000], "context_test_points": []'
forget vllm-tp2-page128
deploy vllm-tp2-page128 -e "$vllm" -e '{'"$common"', "engine_block_size_tokens": 128}'
if [ ! -f "$home/results/vllm-tp2/gpu-run.json" ]; then
  forget vllm-tp2-default
  deploy vllm-tp2-default -e "$vllm" -e '{'"$common"'}'
fi
