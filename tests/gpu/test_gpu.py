"""What only a CUDA device can prove. Skipped, with a reason, where there is none."""

from pathlib import Path

import pytest
import torch
from documents import documents, plain_loss
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from shoal.doctor.measure import measure
from shoal.spec.cluster import ClusterProfile
from shoal.tasks import attention, causal_lm
from shoal.train import selfcheck

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CUDA = torch.device("cuda", 0)


def load(folder: Path, dtype: torch.dtype, implementation: str = "per_document", **options):
    config = AutoConfig.from_pretrained(str(folder))
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, attn_implementation=attention.resolve(implementation, config), **options
    )


def test_the_variable_length_kernel_keeps_documents_apart(tiny_model: Path):
    """bf16 through torch's varlen kernel against each document alone in fp32: the error is rounding, not a leak."""
    rows = documents(6, 49152)
    packed = causal_lm.logits(load(tiny_model, torch.bfloat16).to(CUDA), causal_lm.collate(rows, CUDA))
    reference = load(tiny_model, torch.float32, "eager")
    alone = torch.cat([reference(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0] for row in rows])
    assert (packed.cpu() - alone).abs().max() / alone.abs().max() < 3e-2


def test_gradients_in_bf16_are_those_of_fp32_to_rounding(tiny_model: Path):
    rows = documents(6, 49152)
    fused, plain = load(tiny_model, torch.bfloat16).to(CUDA), load(tiny_model, torch.float32, "eager")
    causal_lm.loss_sum(fused, causal_lm.collate(rows, CUDA)).backward()
    sum(plain_loss(plain, row) for row in rows).backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours.grad.float().cpu().flatten(), theirs.grad.flatten(), dim=0)
        assert cosine > 0.99, name


def test_the_self_check_passes_on_a_quantised_model(tiny_model: Path):
    from peft import LoraConfig, get_peft_model

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )
    model = load(tiny_model, torch.bfloat16, quantization_config=quantization, device_map={"": CUDA})
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    selfcheck.check(adapted, documents(4, 49152), CUDA)


def test_doctor_sees_the_gpu_and_what_torch_makes_of_it(tmp_path: Path) -> None:
    storage = {"runs": str(tmp_path / "runs"), "prepared": str(tmp_path / "prepared"), "cache": str(tmp_path / "cache")}
    place = ClusterProfile.model_validate({"kind": "inline", "resources_per_worker": {"gpu": 1}, "storage": storage})
    found = measure(place)
    assert found.gpus and found.gpus[0].memory_mib > 0 and found.gpus[0].driver
    assert found.cuda is not None and found.cuda.devices >= 1 and found.cuda.error == ""
    assert found.cuda.built_for and found.cuda.driver_supports
