# shellcheck shell=bash
# What gpu-visit.sh measures on one H200, in order of worth. Each line is one playbook run with its own run id; a configuration that
# fails is followed by the next one. tree and home come from gpu-visit.sh. Ran on a GPU so far: default, the burn-in fp8kv (docs/results).
# shellcheck disable=SC2154
site='"PYTHONPATH": "'$tree/scripts/dev/visit/site'"'
vllm_env='{"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", '$site'}'
fp8='"engine_kv_cache_dtype": "fp8", "engine_gpu_memory_utilization": 0.97, "engine_extra_env": '$vllm_env

# The engine's own defaults; 0.97 of the memory so that half a million tokens of bf16 KV fit.
forget default
deploy default -e '{"engine_context_tokens": 507904, "engine_gpu_memory_utilization": 0.97, "engine_extra_env": '"$vllm_env"',
  "context_test_ladder_tokens": [10000, 100000, 500000],
  "context_test_points": [{"input_tokens": 10000, "output_tokens": 64, "concurrency": 16}, {"input_tokens": 100000, "output_tokens": 64, "concurrency": 4}]}'

# SGLang: fp8 weights as stored, chunked attention on, the rotary table cut to a million positions so that the rest fits.
if [ -d "$home/bundles/sglang" ]; then
  mkdir -p "$home/llama-4-scout-fp8"
  python3 - "$tree" "$home/llama-4-scout-fp8/config.json" <<'END'
import json, sys
from pathlib import Path
config = json.loads(Path(sys.argv[1], "roles/model_store/files/models/llama-4-scout/config.json").read_text())
config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
config["text_config"]["max_position_embeddings"] = 1048576
Path(sys.argv[2]).write_text(json.dumps(config, indent=2))
END
  engine='"engine_name": "sglang", "engine_version": "0.5.12.post1", "model_store_dummy": "'$home/llama-4-scout-fp8'", "engine_quantization": null'
  add sglang -e '{'"$engine"'}'
  sglang=$engine', "engine_attention_backend": "fa3", "engine_extra_args": ["--grammar-backend", "none", "--sampling-backend", "pytorch"],
    "engine_gpu_memory_utilization": 0.94, "engine_max_num_seqs": 4,
    "engine_extra_env": {"CUDA_HOME": "/usr/local/cuda", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "8", '$site'}'
  forget sglang
  deploy sglang -e '{'"$sglang"', "engine_context_tokens": 507904, "engine_swa_full_tokens_ratio": 0.04,
    "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
  forget sglang-fp8kv-16384
  deploy sglang-fp8kv-16384 -e '{'"$sglang"', "engine_context_tokens": 1048576, "engine_swa_full_tokens_ratio": 0.03,
    "engine_kv_cache_dtype": "fp8_e4m3", "engine_max_num_batched_tokens": 16384, "context_test_ladder_tokens": [10000, 100000, 500000],
    "context_test_points": []}'
fi

# vLLM with a larger chunk, then up to a million tokens as a burn-in, then block-wise fp8 (DeepGEMM) for the matrix products.
forget fp8kv-32768
deploy fp8kv-32768 -e '{"engine_context_tokens": 524288, "engine_max_num_batched_tokens": 32768, '"$fp8"',
  "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
forget fp8kv-1m
burnin fp8kv-1m -e '{"engine_context_tokens": 1048576, '"$fp8"', "burnin_ladder_tokens": [10000, 500000, 1000000], "burnin_output_tokens": 64}'
deploy fp8kv-block -e '{"engine_context_tokens": 524288, "engine_quantization": "fp8_per_block", '"$fp8"',
  "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
# The tiles of the MoE kernel, with the GPU to itself.
forget moe-tune
step moe-tune "$home/home/engines/vllm-cuda-0.25.1/bin/python" "$tree/scripts/dev/visit/moe_tune.py" --out "$home/moe" &&
  cp -r "$home/moe" "$home/out/"
