"""Run by the engine's own Python: start one vLLM engine after another in this process and let each log its KV pool.

argv[1]: a JSON file with a list of {"model": folder, "args": keyword arguments of vllm.LLM}. One process for all, because
importing the engine takes longer than starting a toy model on it. A mark on stdout separates the logs.
"""

import gc
import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM

    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        print(f"=== job {number}", flush=True)
        llm = LLM(job["model"], skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, **job["args"])
        del llm
        gc.collect()


if __name__ == "__main__":
    main()
