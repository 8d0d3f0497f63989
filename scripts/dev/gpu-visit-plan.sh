# shellcheck shell=bash
# What gpu-visit.sh measures, in order of worth. Each line is one playbook run with its own run id.

# The engine's own defaults at a context that one H200 holds.
deploy default
# The same prompts twice without a flush or a salt: the second run must come out INVALID.
validate seeded -e '{"context_test_flush": false, "context_test_cache_salt": false, "context_test_ladder_tokens": [10000, 100000], "context_test_points": []}'
validate contaminated -e '{"context_test_flush": false, "context_test_cache_salt": false, "context_test_ladder_tokens": [10000, 100000], "context_test_points": []}'
# A second start, compile cache kept.
restart default
# fp8 KV holds 512K; the chunk alone differs between these.
deploy fp8kv-32768 -e '{"engine_kv_cache_dtype": "fp8", "engine_max_num_batched_tokens": 32768, "engine_context_tokens": 524288, "engine_gpu_memory_utilization": 0.95, "context_test_ladder_tokens": [10000, 100000, 250000, 500000]}'
deploy fp8kv-8192 -e '{"engine_kv_cache_dtype": "fp8", "engine_context_tokens": 524288, "engine_gpu_memory_utilization": 0.95, "context_test_ladder_tokens": [100000, 250000, 500000], "context_test_points": []}'
deploy bf16kv-32768 -e '{"engine_max_num_batched_tokens": 32768, "context_test_ladder_tokens": [10000, 100000, 250000], "context_test_points": []}'
