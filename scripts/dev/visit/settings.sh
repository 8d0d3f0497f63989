# shellcheck shell=bash disable=SC2034,SC2154
# What the phases share: the words that make each engine run on a bare GPU image. tree and home come from gpu-visit.sh.
# The CUDA tools that kernels are compiled with at first use: nvcc's own folder, with the run-time library that an image with torch
# may keep elsewhere.
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")
if [ ! -e "$cuda/lib64/libcudart.so" ] && command -v nvcc >/dev/null; then
  runtime=$(find / -xdev -name 'libcudart.so.1*' -not -path '*/proc/*' 2>/dev/null | head -1)
  mkdir -p "$home/cuda/lib64"
  for part in bin include nvvm; do [ -e "$cuda/$part" ] && ln -sfn "$cuda/$part" "$home/cuda/$part"; done
  [ -n "$runtime" ] && ln -sf "$runtime" "$home/cuda/lib64/libcudart.so"
  cuda=$home/cuda
fi
# NVLink multicast stays off on hosts whose GPUs are shared; the measuring hooks are loaded by every process of the engine.
shared='"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1", "HF_HUB_OFFLINE": "1",
  "OMP_NUM_THREADS": "8", "CUDA_HOME": "'$cuda'", "PYTHONPATH": "'$tree/scripts/dev/visit/site'"'
vllm_env='"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
  "VLLM_ALLREDUCE_USE_SYMM_MEM": "0", '$shared
vllm='{"engine_extra_env": {'$vllm_env'}}'
vllm_tuned='{"engine_extra_env": {'$vllm_env', "VLLM_TUNED_CONFIG_FOLDER": "'$home/moe'"}}'
# SGLang: fp8 weights as stored (quantizing on load peaks near twice that); chunked attention hangs on the outer architecture.
if [ ! -f "$home/llama-4-scout-fp8/config.json" ]; then
  mkdir -p "$home/llama-4-scout-fp8"
  python3 - "$tree" "$home/llama-4-scout-fp8/config.json" <<'END'
import json, sys
from pathlib import Path
config = json.loads(Path(sys.argv[1], "roles/model_store/files/models/llama-4-scout/config.json").read_text())
config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
Path(sys.argv[2]).write_text(json.dumps(config, indent=2))
END
fi
sglang='{"engine_name": "sglang", "engine_version": "0.5.12.post1", "gpu_run_gpus": 2, "model_store_dummy": "'$home/llama-4-scout-fp8'",
  "engine_quantization": null, "engine_served_model_name": "llama-4-scout-text", "engine_attention_backend": "fa3",
  "engine_extra_args": ["--grammar-backend", "none", "--sampling-backend", "pytorch"], "engine_max_num_seqs": 16,
  "engine_swa_full_tokens_ratio": 0.05, "engine_extra_env": {'$shared'}}'

# What two GPUs hold: a million tokens on H200; half of it, and a larger share of the memory, on H100.
if [ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)" -lt 120000 ] 2>/dev/null; then
  hold='"engine_context_tokens": 503808, "engine_gpu_memory_utilization": 0.96'
  hold_sglang='"engine_context_tokens": 503808, "engine_gpu_memory_utilization": 0.94'
  million=
else
  hold='"engine_context_tokens": 1048576'
  hold_sglang=$hold
  million=', 1000000'
fi

# choice NAME VARIABLES: vLLM TP2 at 100,000 and 500,000 tokens with one setting changed.
choice() {
  forget "$1"
  deploy "$1" -e "$vllm" -e "{$hold}" -e '{"gpu_run_gpus": 2, "context_test_ladder_tokens": [100000, 500000], "context_test_points": []}' -e "$2"
}
