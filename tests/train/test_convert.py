"""A GGUF base is converted by whichever worker comes first, rank 1 as well as rank 0."""

from pathlib import Path

import pytest
from jobs import job, planned, profile, write_rows
from ranks import run_ranks
from transformers import AutoModelForCausalLM

WORKER = Path(__file__).parent / "convert_worker.py"


@pytest.mark.model
def test_rank_one_converts_the_whole_model(tmp_path: Path, smollm2_gguf: Path):
    made = planned(job(smollm2_gguf, write_rows(tmp_path / "rows.jsonl")), profile(tmp_path))
    path = tmp_path / "plan.json"
    path.write_text(made.model_dump_json())
    run_ranks(WORKER, 2, str(path))
    folder = tmp_path / "cache" / "models" / made.trajectory.model.digest
    model, told = AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert model.config.tie_word_embeddings and model.num_parameters() == 134_515_008
    assert model.generation_config.eos_token_id is not None
