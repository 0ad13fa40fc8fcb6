"""The planner: defaults, deals, refusals, DeepSpeed's configuration, estimates; pure, so facts are written by hand."""

import ast
import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.errors import SpecError
from shoal.facts.types import AdapterFacts, Counts, DataFacts, Facts, ModelFacts, SourceFacts
from shoal.plan import deepspeed, estimate, layout
from shoal.plan.planner import counted, plan
from shoal.plan.table import table
from shoal.plan.types import Plan, SourceObject
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec

RUN = "test-20260101-000000-abcd"
MODEL = ModelFacts(
    base="acme/tiny",
    kind="hub",
    gguf=False,
    revision="a" * 40,
    digest="m",
    tokenizer_digest="t",
    architecture="LlamaForCausalLM",
    num_parameters=1000,
    vocab_size=64,
    hidden_size=8,
    num_hidden_layers=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    num_experts=0,
    quantised=None,
    chat_template=True,
    matrices=frozenset({"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"}),
)
SOURCE = SourceObject(url="/data/a.jsonl", size=1000, etag="e")
DATA = DataFacts(
    train=(
        SourceFacts(
            "/data/*.jsonl", (SOURCE,), "instruction", {}, 1.0, rows=1000, exact=True, sample_tokens=(100, 200, 300)
        ),
    ),
    validation=(),
    chat_template=None,
    digest="d",
    counts=None,
)
FACTS = Facts(MODEL, None, DATA)


def source(**changes: Any) -> DataFacts:
    """DATA with another source to train on."""
    return replace(DATA, train=(replace(DATA.train[0], **changes),))


def job(**sections: Any) -> JobSpec:
    base: dict[str, Any] = {"name": "test", "model": {"base": "acme/tiny"}, "data": {"train": "/data/*.jsonl"}}
    for key, value in sections.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return JobSpec.model_validate(base)


def place(workers: int = 2, gpu: float = 0, **more: Any) -> ClusterProfile:
    resources = {"gpu": gpu, **more.pop("resources", {})}
    return ClusterProfile.model_validate(
        {"kind": "local", "workers": workers, "resources_per_worker": resources, **more}
    )


def made(spec: JobSpec, profile: ClusterProfile | None = None, facts: Facts = FACTS) -> Plan:
    return plan(spec, profile or place(), facts, RUN)


def refusals(spec: JobSpec, profile: ClusterProfile | None = None, facts: Facts = FACTS) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        made(spec, profile, facts)
    return {problem.where: f"{problem.what}; {problem.fix}" for problem in caught.value.problems}


def test_the_plan_serialises_and_comes_back_the_same() -> None:
    one = made(job(train={"batch_size": 63}, deepspeed={"config": {"zero_optimization": {"reduce_bucket_size": 9}}}))
    assert Plan.model_validate_json(one.model_dump_json()) == one
    assert json.loads(one.model_dump_json())["layout"]["deepspeed"]["zero_optimization"]["reduce_bucket_size"] == 9


def test_dtype_and_micro_batch_follow_the_device() -> None:
    spec = job(data={"sequence_length": 1024}, train={"batch_size": 64})
    cpu, gpu = made(spec), made(spec, place(gpu=1))
    assert (cpu.trajectory.dtype, cpu.layout.device, cpu.layout.micro_batch_size) == ("fp32", "cpu", 2)
    assert (gpu.trajectory.dtype, gpu.layout.device, gpu.layout.micro_batch_size) == ("bf16", "cuda", 8)
    assert made(spec, place(gpu=1, resources={"accelerator_type": "T4"})).trajectory.dtype == "fp32"
    assert made(job(train={"batch_size": 3}), place(4)).layout.micro_batch_size == 1


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("qlora", 2e-4), ("full", 2e-5)])
def test_the_learning_rate_follows_the_method(method: str, rate: float) -> None:
    assert made(job(method=method)).trajectory.optimizer.learning_rate == rate
    assert made(job(method=method, optimizer={"learning_rate": 0.5})).trajectory.optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("method", "workers", "gpu", "offload", "stage"),
    [
        ("lora", 4, 0, "none", 0),
        ("qlora", 4, 1, "none", 0),
        ("full", 1, 0, "none", 0),
        ("full", 2, 0, "none", 2),
        ("full", 1, 1, "none", 2),  # bf16: DeepSpeed accumulates in fp32 only under ZeRO
        ("full", 1, 0, "optimizer", 2),
        ("lora", 2, 0, "parameters", 3),
    ],
)
def test_the_stage_follows_method_and_workers(method: str, workers: int, gpu: int, offload: str, stage: int) -> None:
    assert made(job(method=method, deepspeed={"offload": offload}), place(workers, gpu)).layout.stage == stage


def test_every_deal_has_room_for_each_row_and_wastes_less_than_a_micro_step() -> None:
    for batch, workers, micro in itertools.product(range(1, 40), (1, 2, 3, 4, 8), (None, 1, 2, 4, 7)):
        one = layout.deal(batch, workers, micro, forward_rows=4)
        slots = workers * one.micro_batch_size * one.accumulation
        assert slots - batch == one.idle_rows >= 0
        assert (one.accumulation - 1) * one.micro_batch_size < -(-batch // workers)
        for even in layout.even_batch_sizes(batch, workers, micro, 4):
            assert layout.deal(even, workers, micro, 4).idle_rows == 0
        if micro is None:
            assert one.micro_batch_size <= min(4, -(-batch // workers))


def test_an_uneven_deal_is_named_with_the_nearest_even_ones() -> None:
    one = made(job(train={"batch_size": 63, "micro_batch_size": 4}))
    assert (one.layout.accumulation, one.layout.idle_rows) == (8, 1)
    assert (
        "train.batch_size: 63 over 2 workers x micro-batch 4 leaves 1 of 64 row slots idle; 56 or 64 leave none"
        in one.notes
    )
    assert not [note for note in made(job(train={"batch_size": 64})).notes if "idle" in note]
    few = made(job(train={"batch_size": 1}), place(3))
    assert any("leaves 2 of 3 row slots idle; 3 leaves none" in note for note in few.notes)


def test_the_deepspeed_configuration_is_consistent() -> None:
    for batch, workers, micro, method, stage in itertools.product(
        (1, 6, 63), (1, 2, 3), (1, 4, "auto"), ("lora", "full"), (0, 1, 2, 3)
    ):
        spec = job(method=method, train={"batch_size": batch, "micro_batch_size": micro}, deepspeed={"stage": stage})
        made_layout = made(spec, place(workers)).layout
        config = made_layout.deepspeed
        assert (
            config["train_batch_size"]
            == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * workers
            == batch + made_layout.idle_rows
        )
        assert config["zero_optimization"] == {"stage": stage, "overlap_comm": False}
        assert config["gradient_clipping"] == 1.0
        assert not {"optimizer", "scheduler", "bf16", "fp16"} & set(config)


def test_bf16_is_deepspeeds_for_full_fine_tuning_only() -> None:
    full = made(job(method="full"), place(gpu=1)).layout.deepspeed
    assert full["bf16"] == {"enabled": True}
    assert full["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "bf16" not in made(job(method="lora"), place(gpu=1)).layout.deepspeed


def test_offload_reaches_deepspeed() -> None:
    zero = made(job(method="full", deepspeed={"offload": "parameters"})).layout.deepspeed["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": False}
    zero = made(job(method="full", deepspeed={"offload": "optimizer"})).layout.deepspeed["zero_optimization"]
    assert "offload_param" not in zero


REFUSED = {
    "offload parameters": (job(deepspeed={"stage": 2, "offload": "parameters"}), place(), "deepspeed.offload"),
    "offload optimizer": (job(deepspeed={"stage": 0, "offload": "optimizer"}), place(), "deepspeed.offload"),
    "qlora stage 3": (job(method="qlora", deepspeed={"stage": 3}), place(), "deepspeed.stage"),
    "qlora stage 3 gpu": (job(method="qlora", deepspeed={"stage": 3}), place(gpu=1), "deepspeed.stage"),
    "flash cpu": (job(model={"attn_implementation": "flash_attention_2"}), place(), "model.attn_implementation"),
    "flash fp32": (
        job(model={"attn_implementation": "flash_attention_2"}, train={"dtype": "fp32"}),
        place(gpu=1),
        "model.attn_implementation",
    ),
    "length": (job(data={"sequence_length": 4097}), place(), "data.sequence_length"),
    "gpu type": (job(), place(resources={"accelerator_type": "H100"}), "resources_per_worker.accelerator_type"),
    "shared gpu": (job(), place(2, gpu=0.5), "resources_per_worker.gpu"),
    "bf16 on T4": (
        job(train={"dtype": "bf16"}),
        place(gpu=1, resources={"accelerator_type": "T4"}),
        "train.dtype",
    ),
    "bf16 stage 0": (job(method="full", train={"dtype": "bf16"}, deepspeed={"stage": 0}), place(), "deepspeed.stage"),
    "best": (job(train={"load_best_model_at_end": True}), place(), "train.load_best_model_at_end"),
    "patience": (job(train={"early_stopping_patience": 2}), place(), "train.early_stopping_patience"),
    "inline": (job(), place(2, kind="inline"), "workers"),
    "target": (job(lora={"target_modules": ["q_prj"]}), place(), "lora.target_modules"),
    "saved": (job(lora={"modules_to_save": ["lm_haed"]}), place(), "lora.modules_to_save"),
}


def test_a_worker_alone_may_have_a_share_of_a_gpu() -> None:
    assert made(job(), place(1, gpu=0.5)).layout.device == "cuda"


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_combinations_are_refused(name: str) -> None:
    spec, profile, where = REFUSED[name]
    found = refusals(spec, profile)
    assert list(found) == [where]
    assert found[where].partition("; ")[2], "every refusal says what to change"


def test_all_refusals_come_at_once() -> None:
    spec = job(
        data={"sequence_length": 9999},
        train={"load_best_model_at_end": True},
        lora={"target_modules": ["q_prj", "up_proj"]},
        deepspeed={"stage": 1, "offload": "parameters", "config": {"train_batch_size": 8}},
    )
    found = refusals(spec)
    assert set(found) == {
        "data.sequence_length",
        "train.load_best_model_at_end",
        "lora.target_modules",
        "deepspeed.offload",
        "deepspeed.config.train_batch_size",
    }
    assert "did you mean q_proj?" in found["lora.target_modules"]


def test_what_the_model_forbids() -> None:
    experts = replace(FACTS, model=replace(MODEL, num_experts=8))
    assert "deepspeed.stage" in refusals(job(deepspeed={"stage": 3}), facts=experts)
    assert made(job(deepspeed={"stage": 2}), facts=experts).layout.stage == 2
    assert "model.base" in refusals(job(), facts=replace(FACTS, model=replace(MODEL, quantised="gptq")))
    messages = Facts(replace(MODEL, chat_template=False), None, source(format="messages"))
    assert "data.format" in refusals(job(), facts=messages)
    assert made(job(data={"chat_template": "own.jinja"}), facts=messages).trajectory.data.formats == "messages"
    preference = Facts(MODEL, None, source(format="preference"))
    assert "data.columns: {completion: chosen}" in refusals(job(), facts=preference)["data.format"]
    weighted = Facts(MODEL, None, replace(DATA, validation=(replace(DATA.train[0], weight=2.0),)))
    assert "data.validation" in refusals(job(), facts=weighted)
    endless = replace(FACTS, model=replace(MODEL, max_position_embeddings=None))
    assert made(job(data={"sequence_length": 10**6}), facts=endless).trajectory.data.sequence_length == 10**6


RAW = {
    "train_batch_size": (8, "train.batch_size"),
    "train_micro_batch_size_per_gpu": (8, "train.micro_batch_size"),
    "gradient_accumulation_steps": (7, "train.micro_batch_size"),
    "gradient_clipping": (0.5, "optimizer.max_grad_norm"),
    "optimizer.type": ("Adam", "optimizer"),
    "optimizer.params.lr": (1e-3, "optimizer"),
    "scheduler.type": ("WarmupLR", "optimizer.lr_scheduler_type"),
    "fp16.enabled": (True, "train.dtype"),
    "bf16.enabled": (True, "train.dtype"),
    "zero_optimization.stage": (3, "deepspeed.stage"),
    "zero_optimization.offload_optimizer.device": ("cpu", "deepspeed.offload"),
    "zero_optimization.offload_param.device": ("nvme", "deepspeed.offload"),
    "activation_checkpointing.partition_activations": (True, "train.gradient_checkpointing"),
}


@pytest.mark.parametrize("path", RAW)
def test_raw_options_that_contradict_the_plan_name_our_field(path: str) -> None:
    value, field = RAW[path]
    raw: Any = value
    for key in reversed(path.split(".")):
        raw = {key: raw}
    found = refusals(job(deepspeed={"config": raw}))
    assert list(found) == [f"deepspeed.config.{path}"]
    assert field in found[f"deepspeed.config.{path}"]


def test_raw_options_that_agree_or_are_free_are_kept() -> None:
    raw = {
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "fp16": {"enabled": False},
        "bf16": {"enabled": "auto"},
        "steps_per_print": 10,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 100, "allgather_bucket_size": "auto"},
    }
    one = made(job(method="full", deepspeed={"config": raw})).layout.deepspeed
    assert one["steps_per_print"] == 10
    assert one["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 100}
    assert one["train_batch_size"] == 16
    assert "bf16" not in one


def test_unknown_raw_options_are_refused_with_the_nearest_name() -> None:
    found = refusals(job(deepspeed={"config": {"zero_optimisation": {}, "zero_optimization": {"overlap_com": True}}}))
    assert "did you mean zero_optimization?" in found["deepspeed.config.zero_optimisation"]
    assert "did you mean overlap_comm?" in found["deepspeed.config.zero_optimization.overlap_com"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_overlapping_is_refused_where_deepspeed_cannot(stage: int) -> None:
    """DeepSpeed 0.19 asserts that gradients are partitioned."""
    one = job(method="lora", deepspeed={"stage": stage, "config": {"zero_optimization": {"overlap_comm": True}}})
    if stage < 2:
        assert list(refusals(one)) == ["deepspeed.config.zero_optimization.overlap_comm"]
    else:
        assert made(one).layout.deepspeed["zero_optimization"]["overlap_comm"] is True


def test_what_divides_gradients_is_no_jobs_own() -> None:
    found = refusals(job(deepspeed={"config": {"gradient_predivide_factor": 2.0}}))
    assert list(found) == ["deepspeed.config.gradient_predivide_factor"]


def test_the_names_we_know_are_deepspeeds_own() -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])
    tree = ast.parse((source / "runtime/zero/config.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    fields = [node for node in classes["DeepSpeedZeroConfig"].body if isinstance(node, ast.AnnAssign)]
    names = {node.target.id for node in fields if isinstance(node.target, ast.Name)}
    names |= {
        keyword.value.value
        for node in fields
        for keyword in (node.value.keywords if isinstance(node.value, ast.Call) else ())
        if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant)
    }
    assert not deepspeed.ZERO_FREE - names
    everything = "".join(
        path.read_text() for path in source.rglob("*.py") if "config" in path.name or "constants" in path.name
    )
    chosen = made(job(method="full"), place(gpu=1)).layout.deepspeed
    for name in {*deepspeed.FREE, *chosen}:
        assert f'"{name}"' in everything or f"'{name}'" in everything, name


def test_steps_and_tokens_are_estimated_and_then_counted() -> None:
    spec = job(train={"batch_size": 10, "num_train_epochs": 3}, data={"sequence_length": 1000, "validation": 0.1})
    one = made(spec)
    # 900 samples of 200 tokens fill 186 rows of 1,000 tokens at 97%: 19 batches of 10.
    assert (one.trajectory.steps_per_epoch.value, one.trajectory.steps.value) == (19, 57)
    assert (one.trajectory.tokens.value, one.trajectory.steps.estimate) == (540_000, True)
    assert str(one.trajectory.steps) == "57 (estimate)"
    exact = counted(one, steps=60, steps_per_epoch=20, tokens=541_000)
    assert not exact.trajectory.steps.estimate and str(exact.trajectory.tokens) == "541,000"
    assert exact.trajectory.optimizer.warmup_steps == 2
    assert exact.layout == one.layout


def test_prepared_data_make_the_counts_exact() -> None:
    facts = replace(FACTS, data=replace(DATA, counts=Counts(samples=95, packed_rows=41, tokens=8000)))
    packed = made(job(train={"batch_size": 10, "num_train_epochs": 2}), facts=facts).trajectory
    assert (packed.steps.value, packed.steps.estimate, packed.tokens.value) == (10, False, 16_000)
    single = made(job(train={"batch_size": 10}, data={"packing": False}), facts=facts).trajectory
    assert (single.steps.value, single.tokens.estimate) == (10, False)
    short = made(job(train={"batch_size": 10, "max_steps": 4}, data={"packing": False}), facts=facts).trajectory
    assert (short.steps.value, short.steps.estimate, short.tokens.estimate) == (4, False, True)


def test_estimates_by_kind_of_data() -> None:
    data = job(data={"sequence_length": 100}).data
    long = source(rows=30, sample_tokens=(60, 60, 250))
    rejected = estimate.epoch(long, data)
    assert (rejected.rows, rejected.tokens) == (20, 1200)  # two of 60 tokens never share a row of 100
    cut = estimate.epoch(long, data.model_copy(update={"overlength": "truncate"}))
    assert cut.tokens == 2200
    text = replace(long.train[0], format="text")
    assert estimate.epoch(replace(long, train=(text,)), data).tokens == 3700
    twice = replace(DATA, train=(replace(long.train[0], weight=2.0), text))
    assert estimate.epoch(twice, data).tokens == 2 * 1200 + 3700
    assert any(
        "33.3% of the rows" in note
        for note in made(job(data={"sequence_length": 100}), facts=Facts(MODEL, None, long)).notes
    )
    assert estimate.amount(estimate.epoch(source(rows=0, sample_tokens=()), data), job()).steps.value == 1


@pytest.mark.parametrize(("steps", "ratio", "warmup"), [(100, 0.03, 3), (101, 0.03, 4), (1, 0.03, 0), (10, 0.0, 0)])
def test_warmup_is_rounded_up_as_in_transformers_but_never_the_whole_run(steps: int, ratio: float, warmup: int) -> None:
    one = counted(made(job(optimizer={"warmup_ratio": ratio})), steps, steps, 10)
    assert one.trajectory.optimizer.warmup_steps == warmup


def test_given_warmup_steps_stay() -> None:
    one = made(job(optimizer={"warmup_steps": 7, "warmup_ratio": 0.5}))
    assert counted(one, 1000, 1000, 10).trajectory.optimizer.warmup_steps == 7
    constant = made(job(optimizer={"lr_scheduler_type": "constant", "warmup_steps": 7}))
    assert constant.trajectory.optimizer.warmup_steps == 0
    assert any("constant_with_warmup" in note for note in constant.notes)


def test_the_trajectory_is_free_of_counts_and_layout() -> None:
    spec = job(train={"batch_size": 12})
    digest = made(spec).trajectory_digest
    assert counted(made(spec), 999, 333, 5).trajectory_digest == digest
    for other, profile in (
        (job(train={"batch_size": 12, "micro_batch_size": 1}), place(8)),
        (job(train={"batch_size": 12, "gradient_checkpointing": True}, deepspeed={"stage": 3}), place(3)),
        (job(train={"batch_size": 12}, checkpoint={"every_steps": 1}), place(1)),
        (job(train={"batch_size": 12}, checkpoint={"every_steps": "auto"}), place(1)),
    ):
        assert made(other, profile).trajectory_digest == digest
    for change in ({"batch_size": 13}, {"batch_size": 12, "seed": 1}, {"batch_size": 12, "num_train_epochs": 2}):
        assert made(job(train=change)).trajectory_digest != digest
    assert made(job(train={"batch_size": 12}, optimizer={"warmup_steps": 1})).trajectory_digest != digest


BEFORE_STEP_1: dict[str, dict[str, Any]] = {
    "model": {"attn_implementation": "sdpa"},
    "lora": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"], "use_rslora": True},
    "data": {"validation": 0.2, "sequence_length": 512, "packing": False, "train_on": "all", "overlength": "truncate"},
    "train": {
        "batch_size": 13,
        "micro_batch_size": 2,
        "seed": 1,
        "dtype": "bf16",
        "gradient_checkpointing": True,
        "self_check": False,
    },
    "deepspeed": {"stage": 2, "config": {"zero_optimization": {"reduce_bucket_size": 9}}},
}
"""What the self-check or the loss before step 1 may depend on."""
FROM_STEP_1: dict[str, dict[str, Any]] = {
    "train": {
        "num_train_epochs": 2,
        "max_steps": 3,
        "eval_steps": 2,
        "early_stopping_patience": 1,
        "load_best_model_at_end": True,
        "on_nan": "skip",
        "logging_steps": 2,
    },
    "optimizer": {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
    },
    "checkpoint": {"every_steps": 1},
    "export": {"merge": True},
}


@pytest.mark.parametrize("section", ["train", "optimizer"])
def test_each_field_is_known_to_count_before_the_first_step_or_not(section: str) -> None:
    """A field that comes new has to be thought about."""
    before, later = (set(fields.get(section, {})) for fields in (BEFORE_STEP_1, FROM_STEP_1))
    assert not before & later and before | later == set(type(getattr(job(), section)).model_fields)


def test_trials_share_what_is_found_before_the_first_step_where_nothing_differs_that_it_depends_on() -> None:
    def planned(section: str, field: str, value: Any) -> str:
        sections: dict[str, dict[str, Any]] = {"data": {"validation": 0.1}}
        return made(job(**sections | {section: sections.get(section, {}) | {field: value}})).baseline_digest

    plain = job(data={"validation": 0.1})
    one = made(plain).baseline_digest
    for section, fields in FROM_STEP_1.items():
        assert {field: planned(section, field, value) for field, value in fields.items()} == dict.fromkeys(fields, one)
    assert counted(made(plain), 999, 333, 5).baseline_digest == one
    others = {
        "method": made(job(method="full")),
        "workers": made(plain, place(1)),
        "device": made(plain, place(2, 1)),
        "weights": made(plain, facts=replace(FACTS, model=replace(MODEL, digest="other"))),
        "tokenizer": made(plain, facts=replace(FACTS, model=replace(MODEL, tokenizer_digest="other"))),
        "data": made(plain, facts=replace(FACTS, data=replace(DATA, digest="other"))),
        "weight": made(plain, facts=replace(FACTS, data=source(weight=2.0))),
    }
    digests = {name: other.baseline_digest for name, other in others.items()} | {
        field: planned(section, field, value)
        for section, fields in BEFORE_STEP_1.items()
        for field, value in fields.items()
    }
    assert len({one, *digests.values()}) == 1 + len(digests), digests


def test_how_often_to_save_may_be_left_to_what_it_costs() -> None:
    one = made(job(checkpoint={"every_steps": "auto", "mean_time_between_failures_h": 2.5}))
    assert Plan.model_validate_json(one.model_dump_json()).checkpoint.every_steps == "auto"
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table(one))
    assert "as often as pays with a failure every 2.5 h, the newest 3 are kept" in capture.get()


def test_an_adapter_to_start_from_brings_its_own_shape() -> None:
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["up_proj", "q_proj"],
        "lora_dropout": 0.1,
    }
    facts = replace(FACTS, adapter=AdapterFacts("/runs/a/export/adapter", config))
    one = made(job(model={"adapter": "a"}), facts=facts)
    assert one.trajectory.model.adapter == "/runs/a/export/adapter"
    assert one.trajectory.lora and (one.trajectory.lora.r, one.trajectory.lora.target_modules) == (
        4,
        ["q_proj", "up_proj"],
    )
    assert any("lora_dropout" in note for note in one.notes)
    assert "lora.r" in refusals(job(model={"adapter": "a"}, lora={"r": 16}), facts=facts)
    assert "model.adapter" in refusals(job(model={"adapter": "a"}, method="full"), facts=facts)
    whole = replace(FACTS, adapter=AdapterFacts("/runs/b/export/model", None))
    assert "model.adapter" in refusals(job(model={"adapter": "b"}), facts=whole)
    assert made(job(model={"adapter": "b"}, method="full"), facts=whole).trajectory.lora is None


NOTED = {
    "bf16 is many times slower": job(train={"dtype": "bf16"}),
    "so the layout moves the losses": job(lora={"lora_dropout": 0.1}),
    "lora: has no effect": job(method="full", lora={"r": 8}),
    "nothing is held out": job(train={"eval_steps": 5}),
    "eager computes": job(model={"attn_implementation": "eager"}),
    "saves nothing where": job(method="full", deepspeed={"offload": "optimizer"}),
    "embeddings are tied": job(lora={"modules_to_save": ["lm_head"]}),
    "told from the first rows": job(),
    "epochs end before it": job(train={"max_steps": 10**6}),
    "never peaks": job(optimizer={"warmup_steps": 10**6}),
}


@pytest.mark.parametrize("words", NOTED)
def test_what_a_person_should_know_is_noted(words: str) -> None:
    assert sum(words in note for note in made(NOTED[words]).notes) == 1
    assert not any(words in note for note in made(job(data={"format": "instruction"})).notes)


def test_the_table_says_everything_and_cuts_nothing() -> None:
    one = made(job(train={"batch_size": 63, "micro_batch_size": 4}, prompts=["hello"]))
    for width in (60, 100):
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(table(one))
        shown = " ".join(capture.get().split())
        for part in ("acme/tiny", "LlamaForCausalLM", "r 16, alpha 32", "(estimate)", "56 or 64 leave none", RUN):
            assert part in shown, part
        assert "…" not in shown
        assert [
            line for line in capture.get().splitlines() if line in ("model", "data", "training", "layout", "places")
        ]


# Several machines

SHARED = {"runs": "s3://shoal/runs", "prepared": "s3://shoal/prepared", "s3": {"endpoint_url": "http://store:8333"}}
HERE = SourceObject(url="s3://corpus/rows.jsonl", size=10, etag="e")
FACTS_THERE = replace(FACTS, data=source(path="s3://corpus/*.jsonl", objects=(HERE,)))


def cluster(**fields) -> ClusterProfile:
    return ClusterProfile.model_validate({"kind": "ray", "workers": 2, "storage": SHARED, **fields})


def test_an_elastic_plan_is_planned_for_the_most_workers_and_says_the_range() -> None:
    one = made(job(train={"batch_size": 12}), cluster(workers={"min": 1, "max": 3}), FACTS_THERE)
    assert (one.layout.min_workers, one.layout.workers) == (1, 3)
    console = Console(width=120)
    with console.capture() as told:
        console.print(table(one))
    assert "1 to 3 on CPU" in told.get()


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 6), (2, 3), (3, 2), (4, 2), (5, 2), (6, 1), (12, 1)])
def test_fewer_workers_deal_the_same_rows_in_the_same_micro_batches(workers: int, accumulation: int) -> None:
    spec = job(train={"batch_size": 12, "micro_batch_size": 2})
    planned = made(spec, cluster(workers=6), FACTS_THERE).layout
    now = layout.resized(planned, 12, workers)
    assert (now.workers, now.micro_batch_size, now.accumulation) == (workers, 2, accumulation)
    assert now.idle_rows == workers * accumulation * 2 - 12
    assert now.deepspeed["train_batch_size"] == workers * accumulation * 2
    assert now.deepspeed["gradient_accumulation_steps"] == accumulation
    assert now.deepspeed["zero_optimization"] == planned.deepspeed["zero_optimization"]


def test_everything_that_only_this_machine_can_reach_is_refused_at_once() -> None:
    storage = {"runs": "~/runs", "prepared": "/data/prepared", "s3": {"server": "embedded"}}
    facts = replace(FACTS, model=replace(MODEL, kind="folder", base="/models/tiny"))
    found = refusals(job(), cluster(storage=storage), facts)
    assert set(found) == {"storage.s3.server", "storage.runs", "storage.prepared", "model.base", "data.train"}
    assert all(said.partition("; ")[2] for said in found.values())


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000"])
def test_a_store_on_loopback_is_another_one_on_every_node(host: str) -> None:
    storage = {**SHARED, "s3": {"endpoint_url": f"http://{host}"}}
    assert set(refusals(job(), cluster(storage=storage), FACTS_THERE)) == {"storage.s3.endpoint_url"}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"workers": {"min": 3, "max": 2}}, "workers"),
        ({"kind": "local", "workers": {"min": 1, "max": 2}}, "workers"),
        ({"kind": "local", "placement": "spread"}, "placement"),
        ({"kind": "local", "address": "head:6379"}, "address"),
        ({"kind": "local", "network_interface": "eth0"}, "network_interface"),
    ],
)
def test_what_a_kind_of_place_cannot_keep_is_refused(fields: dict, where: str) -> None:
    assert set(refusals(job(), cluster(**fields), FACTS_THERE)) == {where}
