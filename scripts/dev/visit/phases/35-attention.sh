# shellcheck shell=bash disable=SC2154
# Both engines' attention kernels as they use them, an engine on each GPU: time by KV dtype, and what fp8 costs in exactness by context.
for part in "0 vllm-cuda-0.25.1 vllm.vllm_flash_attn 128 128" "1 sglang-cuda-0.5.12.post1 sgl_kernel 1 1"; do
  # shellcheck disable=SC2086
  set -- $part
  CUDA_VISIBLE_DEVICES=$1 timeout 120 "$home/home/engines/$2/bin/python" "$tree/scripts/dev/visit/attention_bench.py" --package "$3" \
    --heads 20:4 --context 131072 524288 1048576 --bf16-pages 0 "$4" --fp8-pages "$5" --repeats 4 --out "$home/out/attention-$2" \
    >"$home/out/attention-$2.log" 2>&1 &
  benches+=($!)
done
wait "${benches[@]}"
