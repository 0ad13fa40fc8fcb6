import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from shoal.data import prepare as prepare_module
from shoal.data.order import count_steps
from shoal.data.prepare import prepare, summary
from shoal.data.prepared import Prepared
from shoal.errors import DataError, ModelError
from shoal.plan.types import Plan
from shoal.storage import Storage


@pytest.fixture
def make(tmp_path, tokenizer_folder):
    """A plan over source files given as {name: bytes}, all under tmp_path."""

    def make(sources: dict[str, bytes], **data) -> Plan:
        objects = []
        for name, content in sources.items():
            (tmp_path / name).write_bytes(content)
            found = Storage().info(str(tmp_path / name))
            objects.append({"url": found.url, "size": found.size, "etag": found.etag})
        held_out = data.pop("held_out", ())
        digest = data.pop("digest", "d1")
        vocab_size = data.pop("vocab_size", 49152)
        train = [one for one in objects if not one["url"].endswith(tuple(held_out))]
        plan = plan_fields(tokenizer_folder, tmp_path, digest, vocab_size)
        plan["trajectory"]["data"] |= {"train": train, "validation": [o for o in objects if o not in train], **data}
        return TypeAdapter(Plan).validate_python(plan)

    return make


def plan_fields(tokenizer_folder, tmp_path, digest: str, vocab_size: int) -> dict:
    return {
        "shoal": "0", "run_id": "r", "checkpoint": {"every_steps": 1, "keep": 1}, "merge": False, "logging_steps": 1,
        "self_check": False, "prompts": [], "max_failures": 0, "notes": [],
        "storage": {
            "run": str(tmp_path / "run"), "prepared": str(tmp_path / "prepared" / digest),
            "cache": str(tmp_path / "cache"), "s3": {},
        },
        "layout": {
            "workers": 1, "device": "cpu", "micro_batch_size": 1, "accumulation": 1, "idle_rows": 0, "stage": 0,
            "offload": "none", "gradient_checkpointing": False, "attn_implementation": "auto", "deepspeed": {},
        },
        "trajectory": {
            "task": "causal-lm", "method": "full", "lora": None, "quantization": None, "dtype": "fp32",
            "num_train_epochs": 2, "max_steps": None, "batch_size": 4, "seed": 17, "eval_steps": None,
            "early_stopping_patience": None, "load_best_model_at_end": False,
            "steps": {"value": 1}, "steps_per_epoch": {"value": 1}, "tokens": {"value": 1},
            "optimizer": {
                "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0, "weight_decay": 0,
                "max_grad_norm": 1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
            },
            "model": {
                "base": str(tokenizer_folder), "kind": "folder", "gguf": False, "revision": None, "digest": "m",
                "tokenizer_digest": "t", "architecture": "LlamaForCausalLM", "num_parameters": 1,
                "vocab_size": vocab_size, "hidden_size": 1, "num_hidden_layers": 1, "max_position_embeddings": 64,
                "tie_word_embeddings": True, "adapter": None, "token": None, "trust_remote_code": False,
            },
            "data": {
                "validation_fraction": 0.0, "format": "prompt-completion", "sequence_length": 64, "packing": True,
                "overlength": "reject", "max_rejected": 0.01, "digest": digest,
            },
        },
    }  # fmt: skip


def jsonl(*rows) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def numbered(*numbers: int) -> list[dict]:
    return [{"prompt": f"say {number}", "completion": f"number {number}"} for number in numbers]


def opened(plan: Plan) -> Prepared:
    return Prepared.open(Storage(), plan.storage.prepared, Path(plan.storage.cache))


def test_rows_of_all_objects_become_samples_with_their_place(make):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1)), "b.jsonl": jsonl(*numbered(2))})
    found = prepare(plan, Storage())
    assert (found.rows, found.samples, found.validation_samples, found.rejected) == (3, 3, 0, {})
    assert summary(Storage(), plan.storage.prepared) == found
    prepared = opened(plan)
    tokenizer = prepare_module._tokenizer(
        plan.trajectory.model.model_dump_json(), plan.storage.cache, plan.storage.s3.model_dump_json()
    )
    for index, document in enumerate(prepared.read(range(3))):
        assert tokenizer.decode(document.input_ids[document.loss_mask]) == f"number {index}<|im_end|>"
    assert [prepared.sample_id(index).rpartition("/")[0].rpartition("/")[2] for index in range(3)] == [
        "a.jsonl", "a.jsonl", "b.jsonl",
    ]  # fmt: skip
    assert found.tokens == prepared.lengths.sum() and found.targets == prepared.targets.sum()


def test_the_same_digest_is_prepared_once(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(5)))})
    prepare(plan, Storage())

    def refuse(function, tasks):
        raise AssertionError("nothing is left to do")

    assert prepare(plan, Storage(), run=refuse).samples == 5


def test_bad_rows_are_counted_kept_apart_and_told(make, tmp_path):
    rows = numbered(*range(4))
    bad = [b'{"prompt": \n', {"prompt": "x"}, {"prompt": "x", "completion": ""}, b'{"prompt": "\xff"}\n',
           {"prompt": "x", "completion": "long " * 99}, {"prompt": 3, "completion": "y"}, b"[1]\n"]  # fmt: skip
    plan = make({"a.jsonl": jsonl(*rows[:2], *bad, *rows[2:])}, max_rejected=0.7)
    found = prepare(plan, Storage())
    assert found.rejected == {
        "wrong-type": 2, "empty-answer": 1, "invalid-utf8": 1, "malformed": 1, "missing-field": 1, "overlength": 1,
    }  # fmt: skip
    assert (found.rows, found.samples) == (11, 4)
    kept = [json.loads(line) for line in (tmp_path / "prepared/d1/rejected.jsonl").read_text().splitlines()]
    assert sorted(one["line"] for one in kept) == [3, 4, 5, 6, 7, 8, 9]
    assert all(one["object"].endswith("a.jsonl") and one["cause"] and one["detail"] for one in kept)
    assert {"prompt": "x"} in [one["row"] for one in kept]


def test_too_many_bad_rows_are_refused_with_causes_examples_and_what_to_change(make, tmp_path):
    plan = make({"a.jsonl": jsonl(*numbered(*range(6)), b"{\n", {"prompt": "x"}, b"}\n", b"]\n")}, max_rejected=0.3)
    with pytest.raises(DataError) as caught:
        prepare(plan, Storage())
    text = str(caught.value)
    assert "4 of 10 rows (40.0%) are rejected, data.max_rejected allows 30.0%" in text
    assert "rejected.jsonl" in text
    assert "malformed: 3 rows; correct or remove these lines" in text
    assert "missing-field: 1 row; fill the field" in text
    assert text.count(f"{tmp_path}/a.jsonl:") == 3
    with pytest.raises(DataError, match=r"40\.0%"):
        prepare(plan, Storage())
    assert prepare(make({}, train=plan.trajectory.data.train, max_rejected=0.5), Storage()).samples == 6


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_data_are_told(make, content):
    with pytest.raises(DataError, match=r"no rows in .*a\.jsonl"):
        prepare(make({"a.jsonl": content}), Storage())


def test_an_empty_object_among_others_is_told(make):
    events = []
    prepare(make({"a.jsonl": jsonl(*numbered(1)), "b.jsonl": b""}), Storage(), report=events.append)
    assert next(event["message"] for event in events if event["kind"] == "note").endswith("b.jsonl holds no rows")


def test_the_held_out_share_is_by_content_and_stable_when_data_grow(make):
    def held_out(count: int, digest: str) -> set[str]:
        plan = make({"a.jsonl": jsonl(*numbered(*range(count)))}, validation_fraction=0.2, digest=digest)
        found = prepare(plan, Storage())
        prepared = opened(plan)
        ids = prepared.read_validation(range(found.validation_samples))
        assert found.samples + found.validation_samples == count
        return {str(document.input_ids.tolist()) for document in ids}

    few, many = held_out(200, "d1"), held_out(400, "d2")
    assert 20 < len(few) < 60
    assert few < many


def test_objects_of_their_own_are_held_out_whole(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(5))), "v.jsonl": jsonl(*numbered(6, 7))}, held_out=["v.jsonl"])
    found = prepare(plan, Storage())
    assert (found.samples, found.validation_samples) == (5, 2)


def test_nothing_left_to_train_on_is_told(make):
    with pytest.raises(DataError, match="no sample is left to train on"):
        prepare(make({"v.jsonl": jsonl(*numbered(6, 7))}, held_out=["v.jsonl"]), Storage())


def test_a_long_text_becomes_pieces(make):
    plan = make({"a.jsonl": jsonl({"text": "word " * 200})}, format="text", sequence_length=32)
    found = prepare(plan, Storage())
    assert found.rows == 1 and found.samples > 5
    assert opened(plan).sample_id(1).endswith("a.jsonl/1/1")


def test_a_tokenizer_of_another_model_is_refused(make):
    with pytest.raises(ModelError, match="knows those below 100"):
        prepare(make({"a.jsonl": jsonl(*numbered(1))}, vocab_size=100), Storage())


def test_a_large_object_in_parts_gives_the_same_samples(make, monkeypatch):
    content = jsonl(*numbered(*range(1100)), b"{\n")

    def samples(digest: str) -> tuple[list, dict]:
        plan = make({"a.jsonl": content}, digest=digest)
        found = prepare(plan, Storage())
        prepared = opened(plan)
        pairs = [(prepared.sample_id(i), one.input_ids.tolist()) for i, one in enumerate(prepared.read(range(1100)))]
        return sorted(pairs), found.rejected

    whole = samples("d1")
    monkeypatch.setattr(prepare_module, "PART_BYTES", len(content) // 3)
    assert samples("d2") == whole


def test_progress_is_told(make, monkeypatch):
    events = []
    prepare(make({"a.jsonl": jsonl(*numbered(*range(600)))}), Storage(), report=events.append)
    assert {(event["kind"], event["phase"]) for event in events} == {("phase", "preparing")}
    assert events[-1]["detail"].startswith("600 rows, ")


def test_two_preparing_the_same_at_once_both_succeed(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(300)))})
    prepare_module._tokenizer.cache_clear()
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = [future.result() for future in [pool.submit(prepare, plan, Storage()) for _ in range(2)]]
    assert found == [summary(Storage(), plan.storage.prepared)] * 2
    assert len(opened(plan).read(range(300))) == 300


def test_units_of_work_cross_processes(make):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1)), "b.jsonl": jsonl(*numbered(2))})

    def elsewhere(function, tasks):
        for task in tasks:
            yield pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(task)))))

    assert prepare(plan, Storage(), run=elsewhere).samples == 3


def test_steps_are_counted_exactly(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(50)))})
    found = prepare(plan, Storage())
    counted = count_steps(opened(plan).lengths, plan.trajectory)
    assert counted.steps_per_epoch == -(-found.packed_rows // 4)
    assert counted.steps == 2 * counted.steps_per_epoch
    assert counted.tokens == 2 * found.tokens


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_object_that_was_replaced_is_not_taken_for_the_planned_one(make, monkeypatch, when):
    plan = make({"a.jsonl": jsonl(*numbered(1, 2, 3))})
    path = Path(plan.trajectory.data.train[0].url)
    read = prepare_module.rows

    def replaced(*arguments):
        yield from read(*arguments)
        path.write_bytes(jsonl(*numbered(1, 2, 3, 4)))

    if when == "before":
        path.write_bytes(jsonl(*numbered(1, 2, 3, 4)))
    else:
        monkeypatch.setattr(prepare_module, "rows", replaced)
    with pytest.raises(DataError, match=f"{path}: was replaced since the plan was made; run the job again"):
        prepare(plan, Storage())
    assert summary(Storage(), plan.storage.prepared) is None
