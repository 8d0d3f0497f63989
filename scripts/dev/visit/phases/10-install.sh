# shellcheck shell=bash disable=SC2154
arrived vllm 900 && install -e '{"gpu_run_gpus": 2}'
