"""The job file that `shoal init` writes: a few answers filled in, every line explained, and it loads as it stands."""

import json
import re
from dataclasses import dataclass
from typing import Literal

import yaml

from shoal.spec.load import parse_job

PLAIN = re.compile(r"(s3://|[.]{0,2}/)?[A-Za-z][\w./*@+-]*")


@dataclass(frozen=True)
class Answers:
    """What `shoal init` asks or takes as flags; the rest of the file is the defaults, written out."""

    base: str
    """Hub id, folder, s3:// prefix or .gguf file of the model to start from."""
    train: str
    """Location of the training data: a file, a glob, or one of them on s3://."""
    name: str = "my-run"
    method: Literal["full", "lora", "qlora"] = "lora"
    validation: float | str = 0.05
    """Share held out, or a location."""
    sequence_length: int = 2048
    batch_size: int = 16
    num_train_epochs: int = 1


ADAPTER = """\
lora:
  r: 16                          # rank: the adapter's size
  lora_alpha: 32                 # scale of the update: lora_alpha / r
  lora_dropout: 0.0              # above 0, the losses depend on the number of workers
  target_modules: all-linear     # every linear layer but the output head; or a list of names
"""

HEAD = """\
# A Shoal job: what to learn. Where it runs is a cluster profile's matter: shoal run FILE --on PROFILE
# See first:  shoal check FILE  (the data)   shoal plan FILE  (what will happen)
# Any field:  --set optimizer.learning_rate=1e-4
"""


def starting_job(answers: Answers) -> str:
    """YAML text of a job with a comment beside each line. Raises SpecError when an answer cannot stand in a job."""
    text = _job(answers)
    parse_job(text, "shoal init")
    return text


def _job(answers: Answers) -> str:
    rate = "2.0e-5" if answers.method == "full" else "2.0e-4"
    return f"""{HEAD}
{_line("name", answers.name, "of the run: lower-case letters, digits, dashes")}
model:
{_line("  base", answers.base, "hub id, folder, s3:// prefix, or a .gguf file")}
task: causal-lm                  # what is learnt: to answer, token by token
{_line("method", answers.method, "how: full (all weights), lora (an adapter), qlora (an adapter on a 4-bit base)")}
{ADAPTER if answers.method != "full" else ""}data:
{_line("  train", answers.train, "files or globs: .jsonl(.gz, .zst) .json .csv .parquet .arrow, here or on s3://")}
{_line("  validation", answers.validation, "share held out to measure with; or a location")}
  format: auto                   # messages | instruction | prompt-completion | text; auto tells it from the rows
  train_on: assistant            # the answers; last: the last of each row; all: every token
{_line("  sequence_length", answers.sequence_length, "longest row in tokens; longer samples are set aside and counted")}
  packing: true                  # several samples in a row; they never see each other
train:
{_line("  num_train_epochs", answers.num_train_epochs, "passes over the data")}
{_line("  batch_size", answers.batch_size, "rows per optimizer step over all workers, whatever their number")}
  micro_batch_size: auto         # rows per forward pass of one worker: speed and memory, never the result
  seed: 17                       # of the order and the adapter's start
optimizer:
  {"learning_rate: " + rate:<31}# peak of the schedule
  lr_scheduler_type: cosine      # after the warmup, down to 0 at the last step
  warmup_ratio: 0.03             # share of the steps that warm up
deepspeed:
  stage: auto                    # ZeRO 0-3: what the workers share; auto lets the plan decide
checkpoint:
  every_steps: 200               # steps lost at most when a machine dies; auto: by what a save costs
  keep: 3                        # newest ones to keep
prompts:                         # answered before and after, shown at the end
  - What can you help me with?
"""


def _line(key: str, value: object, comment: str) -> str:
    text = str(value)
    if isinstance(value, str) and not (PLAIN.fullmatch(text) and isinstance(yaml.safe_load(text), str)):
        text = json.dumps(value, ensure_ascii=False)
    return f"{f'{key}: {text}':<32} # {comment}"
