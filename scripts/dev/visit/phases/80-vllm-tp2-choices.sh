# shellcheck shell=bash disable=SC2154
# vLLM TP2 at 100,000 and 500,000 tokens, one choice at a time beside the defaults on the same machine. Not run yet.
. "$tree/scripts/dev/visit/settings.sh"
ladder='"gpu_run_gpus": 2, "engine_context_tokens": 1048576, "context_test_ladder_tokens": [100000, 500000], "context_test_points": []'
for choice in \
  'default {}' \
  'chunk16k {"engine_max_num_batched_tokens": 16384}' \
  'chunk32k {"engine_max_num_batched_tokens": 32768}' \
  'nographs {"engine_enforce_eager": true}' \
  'triton {"engine_attention_backend": "TRITON_ATTN"}'; do
  name=vllm-tp2-${choice%% *}
  forget "$name"
  deploy "$name" -e "$vllm" -e "{$ladder}" -e "${choice#* }"
done
