# shellcheck shell=bash
# What gpu-visit.sh measures on one H200, in order of worth. Each line is one playbook run with its own run id.
# tree and home come from gpu-visit.sh.
# shellcheck disable=SC2154
site='"PYTHONPATH": "'$tree/scripts/dev/visit/site'"'
vllm_env='{"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", '$site'}'
tuned_env='{"VLLM_TUNED_CONFIG_FOLDER": "'$home/moe'", '${vllm_env#\{}
one_m='"engine_context_tokens": 1048576, "engine_kv_cache_dtype": "fp8", "engine_gpu_memory_utilization": 0.97'

# The engine's own defaults; 0.97 of the memory so that half a million tokens of bf16 KV fit.
deploy default -e '{"engine_context_tokens": 507904, "engine_gpu_memory_utilization": 0.97, "engine_extra_env": '"$vllm_env"',
  "context_test_ladder_tokens": [10000, 100000, 500000],
  "context_test_points": [{"input_tokens": 10000, "output_tokens": 64, "concurrency": 4}, {"input_tokens": 10000, "output_tokens": 64, "concurrency": 16},
    {"input_tokens": 100000, "output_tokens": 64, "concurrency": 4}]}'

# The MoE kernel's tiles for this GPU, with the GPU to itself; then fp8 KV and those tiles, up to a million tokens, as a burn-in.
step stop-tune play playbooks/stop.yml
step moe-tune "$home/home/engines/vllm-cuda-0.25.1/bin/python" "$tree/scripts/dev/visit/moe_tune.py" --out "$home/moe"
burnin fp8kv-moe -e '{'"$one_m"', "engine_extra_env": '"$tuned_env"', "burnin_ladder_tokens": [10000, 100000, 500000, 1000000], "burnin_output_tokens": 64}'
# The same without the tiles (compile cache kept): what each of the two brings.
deploy fp8kv -e '{'"$one_m"', "engine_extra_env": '"$vllm_env"', "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'

# SGLang: fp8 weights as stored, chunked attention on, the rotary table cut to a million positions so that the rest fits.
mkdir -p "$home/llama-4-scout-fp8"
python3 - "$tree" "$home/llama-4-scout-fp8/config.json" <<'END'
import json, sys
from pathlib import Path
config = json.loads(Path(sys.argv[1], "roles/model_store/files/models/llama-4-scout/config.json").read_text())
config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
config["text_config"]["max_position_embeddings"] = 1048576
Path(sys.argv[2]).write_text(json.dumps(config, indent=2))
END
sglang='"engine_name": "sglang", "engine_version": "0.5.12.post1", "model_store_dummy": "'$home/llama-4-scout-fp8'", "engine_quantization": null,
  "engine_attention_backend": "fa3", "engine_extra_args": ["--grammar-backend", "none", "--sampling-backend", "pytorch"],
  "engine_gpu_memory_utilization": 0.94, "engine_max_num_seqs": 4,
  "engine_extra_env": {"CUDA_HOME": "/usr/local/cuda", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "8", '$site'}'
deploy sglang -e '{'"$sglang"', "engine_context_tokens": 507904, "engine_swa_full_tokens_ratio": 0.04,
  "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
deploy sglang-fp8kv-16384 -e '{'"$sglang"', "engine_context_tokens": 1048576, "engine_swa_full_tokens_ratio": 0.03, "engine_kv_cache_dtype": "fp8_e4m3",
  "engine_max_num_batched_tokens": 16384, "context_test_ladder_tokens": [10000, 100000, 500000], "context_test_points": []}'
