"""A stand-in for vLLM and SGLang, for this project's own tests only. It serves no model: every answer is made up.

It speaks the HTTP of both engines (completions with token ids, chat, /generate, models, health, metrics, tokenize, cache
flushes), keeps an exact schedule (time to first token, gap between tokens), has a real prefix cache in its counters,
logs the phases of a start like the engines do, and misbehaves on demand. Standard library only, Python 3.10+.

    python tests/standin --engine vllm --port 8000 --ttft 0.2 --gap 0.01
    python3 -m standin --model-path /m --context-length 4096 --port 30000          # SGLang's argv
    python3 -m standin --model /m --max-model-len 4096 --fail-start oom             # dies like vLLM does
"""
