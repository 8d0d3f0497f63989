# shellcheck shell=bash disable=SC2154
# While the next engine is installed: tiles for the MoE kernel, on one GPU the halves of TP2, on the other the whole experts of PP2.
for part in "0 4096" "1 8192"; do
  CUDA_VISIBLE_DEVICES=${part% *} timeout 240 "$home/home/engines/vllm-cuda-0.25.1/bin/python" "$tree/scripts/dev/visit/moe_tune.py" --jobs 8 \
    --intermediate "${part#* }" --tokens 2048 4096 8192 16384 --out "$home/out/moe-${part#* }" >"$home/out/moe-${part#* }.log" 2>&1 &
  tuning+=($!)
done
