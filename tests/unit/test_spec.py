"""What a person writes: loaded whole, or refused with every mistake at once."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from shoal.errors import Problem, SpecError
from shoal.spec.foreign import NAMES
from shoal.spec.load import load_job, load_profile, parse_job
from shoal.spec.schema import MODELS, schema
from shoal.spec.starter import Answers, starting_job

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
LAUNCHED = {"ray-aws", "ray-gcp"}
"""Files of Ray's own cluster launcher, beside the profiles."""
PROFILES = sorted(file for file in (ROOT / "cluster").glob("*.yaml") if file.stem not in LAUNCHED)
LEAST = "name: tiny\nmodel: {base: some/model}\ndata: {train: rows.jsonl}\n"
AWS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
HUB_TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyzABCD"
LONG_SECRET = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"


def said(text: str | bytes, *overrides: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse_job(text, "job.yaml", overrides)
    assert all(isinstance(problem, Problem) for problem in caught.value.problems)
    return [problem for problem in caught.value.problems if isinstance(problem, Problem)]


def only(text: str | bytes, *overrides: str) -> str:
    problems = said(text, *overrides)
    assert len(problems) == 1, problems
    return str(problems[0])


# What ships


def test_there_are_jobs_and_profiles():
    assert {file.stem for file in JOBS} >= {"quickstart", "sft-lora", "sft-qlora", "full-zero3"}
    assert {file.stem for file in PROFILES} >= {"inline", "local"}


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.stem)
def test_every_shipped_job_loads_and_fits_its_schema(file: Path):
    assert load_job(file).name
    jsonschema.validate(yaml.safe_load(file.read_text()), schema("job"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_every_shipped_profile_loads_and_fits_its_schema(file: Path):
    load_profile(file)
    jsonschema.validate(yaml.safe_load(file.read_text()), schema("cluster"))


@pytest.mark.parametrize("name", ["inline", "local"])
def test_a_built_in_profile_is_the_shipped_file(name: str):
    assert load_profile(name) == load_profile(ROOT / "cluster" / f"{name}.yaml")


# Values


@pytest.mark.parametrize("written", ["2e-4", "2E-4", "2.0e-4", "0.0002", ".0002", "+2e-4"])
def test_a_float_may_be_written_as_people_write_it(written: str):
    assert parse_job(LEAST + f"optimizer: {{learning_rate: {written}}}", "x").optimizer.learning_rate == 2e-4


def test_an_exponent_is_a_share_and_not_a_file_name():
    assert parse_job(LEAST.replace("rows.jsonl", "rows.jsonl, validation: 5e-2"), "x").data.validation == 0.05


def test_a_date_is_text():
    assert (
        parse_job(LEAST.replace("some/model", "some/model, revision: 2026-01-31"), "x").model.revision == "2026-01-31"
    )


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("batch_size", "true"),
        ("batch_size", '"3"'),
        ("batch_size", "3.0"),
        ("batch_size", "1e2"),
        ("micro_batch_size", "true"),
        ("micro_batch_size", "2.5"),
        ("self_check", "1"),
        ("self_check", '"yes"'),
        ("seed", "4294967296"),
    ],
)
def test_another_kind_of_value_is_refused_rather_than_converted(field: str, written: str):
    message = only(LEAST + f"train: {{{field}: {written}}}")
    assert message.startswith(f"job.yaml:4 train.{field}: is ")
    assert "allowed: " in message


@pytest.mark.parametrize("written", ['"1e-4"', "true", "fast"])
def test_text_and_truth_are_no_learning_rate(written: str):
    assert "a number above 0 below 10" in only(LEAST + f"optimizer: {{learning_rate: {written}}}")


def test_a_number_in_quotes_is_told_so():
    assert "write it without quotes" in only(LEAST + 'optimizer: {learning_rate: "1e-4"}')


@pytest.mark.parametrize("written", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(written: str):
    assert "give a finite number" in only(LEAST + f"lora: {{lora_alpha: {written}}}")


# Mistakes in fields


def test_all_mistakes_come_at_once_in_the_order_of_the_lines():
    problems = said(
        "name: My Run\n"
        "model: {base: 5}\n"
        "method: loar\n"
        "data:\n"
        "  packing: 1\n"
        "train:\n"
        "  micro_batch_size: many\n"
        "  seed: true\n"
        "checkpoint:\n"
        "prompts: [1, hello]\n"
    )
    assert [problem.where for problem in problems] == [
        "job.yaml:1 name",
        "job.yaml:2 model.base",
        "job.yaml:3 method",
        "job.yaml:4 data.train",
        "job.yaml:5 data.packing",
        "job.yaml:7 train.micro_batch_size",
        "job.yaml:8 train.seed",
        "job.yaml:9 checkpoint",
        "job.yaml:10 prompts[0]",
    ]
    text = "\n".join(map(str, problems))
    assert "such as `my-run`" in text
    assert "did you mean `lora`?" in text
    assert "`auto`, or a whole number from 1" in text
    assert "pydantic" not in text
    assert "literal" not in text


def test_a_union_says_one_sentence_at_the_place_inside():
    assert only(LEAST.replace("rows.jsonl", "[rows.jsonl, 3]")).startswith(
        "job.yaml:3 data.train[1]: is 3; allowed: text"
    )
    assert only(LEAST.replace("rows.jsonl", "[]")).startswith("job.yaml:3 data.train: is empty")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("trian: {}", "did you mean `train`?"),
        ("learning_rate: 1e-4", "write `optimizer.learning_rate`"),
        ("learning_rat: 1e-4", "did you mean `optimizer.learning_rate`?"),
        ("train: {batchsize: 3}", "did you mean `train.batch_size`?"),
        ("train: {lora_alpha: 3}", "write `lora.lora_alpha`"),
        ("train.seed: 3", "write `seed` inside `train`"),
        ("checkpoint: {zzz: 3}", "its fields are every_steps, mean_time_between_failures_h, keep"),
        ("deepspeed: ds_config.json", "under deepspeed.config"),
        ("optimizer: adamw_torch", "the optimizer is AdamW"),
        ("train: {max_steps: -1}", "train.num_train_epochs ends the run"),
        ("train: {dtype: bfloat16}", "write `bf16`"),
        ("lora:", "is given without a value"),
        ("checkpoint: {every_steps: often}", "allowed: `auto`, or a whole number from 1"),
    ],
)
def test_the_nearest_field_is_named(line: str, answer: str):
    message = only(LEAST + line)
    assert message.startswith("job.yaml:4 ")
    assert answer in message


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("per_device_train_batch_size", "train.batch_size"),
        ("gradient_accumulation_steps", "train.batch_size"),
        ("num_epochs", "train.num_train_epochs"),
        ("lora_rank", "lora.r"),
        ("lora_target", "lora.target_modules"),
        ("adapter", "method"),
        ("load_in_4bit", "method"),
        ("base_model", "model.base"),
        ("cutoff_len", "data.sequence_length"),
        ("val_set_size", "data.validation"),
        ("bf16", "train.dtype"),
        ("save_total_limit", "checkpoint.keep"),
        ("stage", "task"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(name: str, ours: str):
    message = only(LEAST + f"{name}: 4")
    assert f"job.yaml:4 {name}: is a name from " in message
    assert f"write `{ours}`" in message


def test_a_batch_per_device_says_how_it_converts():
    assert "4 x gradient_accumulation_steps x number of workers" in only(LEAST + "per_device_train_batch_size: 4")


@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_the_table_of_other_names_points_at_fields_that_exist(kind):
    for name, entry in NAMES[kind].items():
        assert name not in MODELS[kind].model_fields, name
        assert entry.ours or entry.note, name
        shape = schema(kind)
        for part in filter(None, entry.ours.split(".")):
            if "$ref" in shape:
                shape = schema(kind)["$defs"][shape["$ref"].rsplit("/", 1)[1]]
            assert part in shape["properties"], (name, entry.ours)
            shape = shape["properties"][part]


@pytest.mark.parametrize(
    ("job", "file", "words"),
    [
        (False, "cluster/ray-aws.yaml", ("is a file of Ray's cluster launcher", "ray up", "cluster/ray-submit.yaml")),
        (False, "k8s/overlays/cpu/manifests/rayjob.yaml", ("is a Kubernetes manifest", "rendered from")),
        (False, "jobs/sft-lora.yaml", ("is a job file, and --on names a cluster profile", "turn the two round")),
        (True, "cluster/kuberay.yaml", ("is a cluster profile, and a job file is asked", "turn the two round")),
        (True, "cluster/ray-gcp.yaml", ("is a file of Ray's cluster launcher",)),
    ],
)
def test_a_file_of_another_kind_is_one_mistake(job: bool, file: str, words: tuple[str, ...]):
    with pytest.raises(SpecError) as caught:
        (load_job if job else load_profile)(ROOT / file)
    assert len(caught.value.problems) == 1
    assert all(word in str(caught.value) for word in words)


def test_a_name_that_is_too_long_is_told_how_long_it_may_be():
    assert "up to 40 lower-case letters" in only(LEAST.replace("tiny", "a" * 41))


# Overrides


def test_set_reads_yaml_and_comes_before_validation():
    job = parse_job(
        LEAST.replace("name: tiny", "name: Not Valid"),
        "x",
        ["name=good", "optimizer.learning_rate=2e-4", "data.train=[a, b]", "train.micro_batch_size=2", "lora={r: 8}"],
    )
    assert (job.name, job.optimizer.learning_rate, job.data.train) == ("good", 2e-4, ["a", "b"])
    assert (job.train.micro_batch_size, job.lora.r) == (2, 8)


def test_set_leaves_other_users_of_an_alias_alone():
    text = LEAST + "lora: &x {r: 4}\ncheckpoint: {keep: 2}\ndeepspeed: {config: {a: *x, b: *x}}"
    job = parse_job(text, "x", ["deepspeed.config.a.r=9"])
    assert (job.lora.r, job.deepspeed.config) == (4, {"a": {"r": 9}, "b": {"r": 4}})


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("train.batchsize=4", "--set train.batchsize: is not a field of `train`; did you mean `train.batch_size`?"),
        ("trian.batch_size=4", "--set trian.batch_size: `trian` is not a field of the file; did you mean `train`?"),
        ("train.seed=x", "--set train.seed: is the text 'x'"),
        ("train.seed=", "--set train.seed: is given without a value"),
        ("name.x=1", "--set name.x: `x` would go inside text"),
        ("train.seed", "--set train.seed: gives no field a value"),
        ("=3", "--set : gives no field a value"),
        ("lora={r: 8", "--set lora:1:13: cannot be read as YAML"),
        (f"model.token={HUB_TOKEN}", "--set model.token: a Hugging Face token in plain text (not shown here)"),
    ],
)
def test_a_wrong_override_says_that_it_came_from_set(override: str, start: str):
    assert only(LEAST, override).startswith(start)


def test_wrong_overrides_and_wrong_lines_come_together():
    problems = said(LEAST + "method: loar", "train.batchsize=4", "nothing")
    assert {problem.where for problem in problems} == {"--set nothing", "--set train.batchsize", "job.yaml:4 method"}


# Files that cannot be read


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "job.yaml: the file is empty"),
        ("# nothing\n", "job.yaml: the file is empty"),
        ("- a\n", "job.yaml: is a list, not a mapping"),
        ("hello\n", "job.yaml: is text, not a mapping"),
        ("name: x\n\tmodel: y\n", "job.yaml:2:1: cannot be read as YAML"),
        ("a: b: c\n", "job.yaml:1:5: cannot be read as YAML"),
        ('name: "x\n', "job.yaml:2:1: cannot be read as YAML"),
        ("name: !env HOME\n", "job.yaml:1:7: cannot be read as YAML"),
        ("name: x\n---\nname: y\n", "job.yaml:2:1: cannot be read as YAML"),
        (b"name: \xff\xfe\n", "job.yaml: is not text that YAML allows"),
        ("name: \x01\n", "job.yaml: is not text that YAML allows"),
        ("[" * 5000, "job.yaml: is nested too deeply"),
        (f"seed: {'9' * 5000}\n", "job.yaml: holds a number that cannot be read"),
        ("name: a\nmodel: {}\nname: b\n", "job.yaml:3 name: is given twice, here and on line 1"),
        ("1: x\n", "job.yaml:1: `1` is a key, and keys are text"),
        ("on: x\n", "job.yaml:1: `on` is a key, and keys are text"),
        ("? [a, b]\n: x\n", "job.yaml:1: a list or mapping is a key"),
        ("a: &a [*a]\n", "job.yaml:1: this value contains itself"),
    ],
)
def test_what_cannot_be_read_is_answered_in_one_line(text: str | bytes, start: str):
    message = only(text)
    assert message.startswith(start)
    assert "\n" not in message


def test_aliases_of_aliases_do_not_blow_up():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for below, here in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{here}: &{here} [{', '.join([f'*{below}'] * 10)}]")
    assert "take aliases of aliases out" in only("\n".join(lines))


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    (tmp_path / "alpaca.yaml").write_text(LEAST)
    for given in ("alpca.yaml", "alpaca", "alpaca.yml"):
        with pytest.raises(SpecError, match=f"did you mean {tmp_path}/alpaca.yaml"):
            load_job(tmp_path / given)
    with pytest.raises(SpecError, match="is a folder"):
        load_job(tmp_path)
    with pytest.raises(SpecError, match="is missing too"):
        load_job(tmp_path / "no" / "job.yaml")


def test_a_missing_profile_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean `local`"):
        load_profile("lcoal")
    with pytest.raises(SpecError, match="need no file"):
        load_profile("/nowhere/x.yaml")


# Secrets


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        (f"learning_rate: {AWS_KEY}", AWS_KEY),
        (f"prompts: [tell me {HUB_TOKEN}]", HUB_TOKEN),
        (f"hub_token: {LONG_SECRET}", LONG_SECRET),
        (f"deepspeed: {{config: {{aio: {{api_key: {LONG_SECRET}}}}}}}", LONG_SECRET),
        (f"method: s3://user:{LONG_SECRET}@bucket/x", LONG_SECRET.partition("/")[0]),
        ("deepspeed: {config: {wandb: {api_key: hunter2}}}", "hunter2"),
        ("deepspeed: {config: {comet: {api-key: 987654}}}", "987654"),
        ("deepspeed: {config: {tensorboard: {password: 'two words'}}}", "two words"),
        ("deepspeed: {config: {wandb: {team: https://someone@host/x}}}", "someone"),
        ("export: 'https://host/x?token=wxyz'", "wxyz"),
        ("method: https://host/x?a=b&api_key=abcd", "abcd"),
        ("export: https://x/y?X-Amz-Signature=0123456789abcdef", "0123456789abcdef"),
    ],
)
def test_a_written_credential_is_refused_and_never_repeated(line: str, secret: str):
    problems = said(LEAST + line)
    assert any("(not shown here)" in problem.what and "env:NAME" in problem.fix for problem in problems)
    assert not any(secret in str(problem) for problem in problems)


def test_a_short_token_is_not_shown_either():
    message = only(LEAST.replace("some/model", "some/model, token: hunter2"))
    assert "hunter2" not in message
    assert "env:NAME" in message


def test_a_special_token_is_no_credential():
    problems = said(LEAST + "pad_token: <|endoftext|>")
    assert not any("credential" in problem.what for problem in problems)


def test_a_profile_names_keys_and_does_not_hold_them(tmp_path: Path):
    file = tmp_path / "p.yaml"
    keys = f"{{access_key_env: {AWS_KEY}, secret_key_env: {LONG_SECRET}}}"
    file.write_text(f"kind: local\nstorage: {{s3: {{credentials: {keys}}}}}\n")
    with pytest.raises(SpecError) as caught:
        load_profile(file)
    assert len(caught.value.problems) == 2
    assert AWS_KEY not in str(caught.value)
    assert LONG_SECRET not in str(caught.value)
    file.write_text(file.read_text().replace(AWS_KEY, "MY_KEY").replace(LONG_SECRET, "MY_SECRET"))
    assert load_profile(file).storage.s3.credentials.access_key_env == "MY_KEY"


@pytest.mark.parametrize(
    "base", ["models/sk-learn-and-other-long-names", "s3://bucket/hf_models", "org/task-b-7B-Instruct-v01-x"]
)
def test_an_ordinary_name_is_no_credential(base: str):
    assert parse_job(LEAST.replace("some/model", base), "x").model.base == base


# Schema and starting job


def test_the_schema_documents_every_field():
    for kind in MODELS:
        sections = schema(kind)["$defs"]
        for shape in [schema(kind), *sections.values()]:
            assert shape["additionalProperties"] is False
            for name, field in shape["properties"].items():
                # A field with the very words of its section leaves them to the section.
                assert field.get("description") or sections[field["$ref"].rsplit("/", 1)[1]]["description"], name
        json.dumps(schema(kind))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_starting_job_loads_and_explains_each_line(method):
    text = starting_job(Answers(base="org/model", train="s3://corpus/*.jsonl", method=method, name="first"))
    job = parse_job(text, "job.yaml")
    assert (job.name, job.method, job.model.base, job.data.train) == (
        "first",
        method,
        "org/model",
        "s3://corpus/*.jsonl",
    )
    assert ("\nlora:" in text) == (method != "full")
    unexplained = [line for line in text.splitlines() if ": " in line and "#" not in line]
    assert not unexplained


@pytest.mark.parametrize(
    "odd", ["a b: c", "1e5", "no", "~", "null", "a #b", "*.jsonl", "{x}", "C:\\data", 'say "x"', "é", "2026-01-31"]
)
def test_a_starting_job_keeps_any_answer_as_it_was_given(odd: str):
    job = parse_job(starting_job(Answers(base=odd, train=odd, validation=odd)), "job.yaml")
    assert (job.model.base, job.data.train, job.data.validation) == (odd, odd, odd)


def test_an_answer_that_cannot_stand_in_a_job_is_refused():
    with pytest.raises(SpecError, match="such as `my-run`"):
        starting_job(Answers(base="org/model", train="x", name="My Run"))
