"""The classes of cause that a run can end by: how each is told from what was said, and what helps. Pure."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One class."""

    name: str
    says: str
    """In a few words, for the verdict."""
    advice: str
    sign: re.Pattern[str]
    """Found in the words of an error; the first class whose sign is found holds."""


def _cause(name: str, says: str, advice: str, sign: str) -> Cause:
    return Cause(name, says, advice, re.compile(sign, re.IGNORECASE))


CAUSES = (
    _cause(
        "disk-full",
        "a disk is full",
        "free space where the message says, set storage.cache to a larger disk, or lower checkpoint.keep",
        r"disk is full|no space left|disk quota|store is full|disk has only|larger than this disk|file too large"
        r"|free space\b",
    ),
    _cause(
        "out-of-memory",
        "memory did not suffice",
        "lower train.micro_batch_size, set train.gradient_checkpointing, raise deepspeed.stage, or take fewer workers "
        "per machine",
        r"out[ _-]of[ _-]memory|ran out of memory|running low on memory|cannot allocate memory|\bOOM\b|^memory:",
    ),
    _cause(
        "not-a-number",
        "the loss or its gradient was no number",
        "lower optimizer.learning_rate or look at the samples that the message names; train.on_nan says what a run does",
        r"is (-?nan|-?inf)\b|no number|not[ _-]a[ _-]number|\bNaN\b",
    ),
    _cause(
        "store-away",
        "the object store did not answer",
        "bring the store back, or mend storage.s3; nothing that was saved is lost",
        r"store[ _-]away|cannot be reached|does not answer in time|connection to .* broke|no connection|store failed"
        r"|store is too busy|not accept the key|key has expired|store refuses|no key was found|no bucket",
    ),
    _cause(
        "hung",
        "a worker stood still",
        "look at that node's disk, network and GPU (`shoal doctor --on PROFILE`); a debugger there shows where it waits",
        r"\bhung\b|\bhangs?\b|stood still|stands still|no sign of life|timed out waiting|NCCL.*timeout",
    ),
    _cause(
        "node-gone",
        "a node went away",
        "bring the node back or lower `workers`; an elastic `workers: {min, max}` goes on without it",
        r"node[ _-](is )?(gone|lost|dead|away|died)|node .* (died|went away|is gone|was lost)|raylet",
    ),
    _cause(
        "no-room",
        "the cluster had no room",
        "lower `workers` or resources_per_worker, or add nodes; `ray status` shows who has them",
        r"no room|GPUs are asked for",
    ),
    _cause(
        "data-refused",
        "the data cannot be trained on as they are",
        "`shoal check JOB` shows the rows and why; mend them, then start anew",
        r"^DataError|\bdata\.(train|validation|max_rejected)\b|rows? .*rejected",
    ),
    _cause(
        "not-what-was-trained",
        "the export is not what was trained",
        "the export was set apart; `shoal resume` exports again, and the figures belong into a bug report",
        r"^ExportError|is not what was trained",
    ),
    _cause(
        "worker-died",
        "a worker's process died",
        "its last words are above; `dmesg` on its node tells whether the kernel killed it",
        r"worker .* died|process[ _-](died|dead|gone|is gone)|dead process|killed|SIG[A-Z]+|died",
    ),
    _cause(
        "preempted",
        "its machines were taken away too often",
        "raise max_preemptions in the profile, or take nodes that stay",
        r"preempted",
    ),
    _cause(
        "user-error",
        "what the job or the profile asks cannot be had",
        "change what the message names, then start anew",
        r"^(SpecError|ModelError|ClusterError|SelfCheckError)|user[ _-]error",
    ),
    _cause(
        "bug",
        "Shoal itself failed",
        "this is a bug of Shoal: ~/.shoal/cache/bugs holds its traceback",
        r"^(TypeError|AttributeError|NameError|KeyError|IndexError|AssertionError|ImportError|NotImplementedError)",
    ),
)
UNKNOWN = _cause("failed", "training failed", "the message above is all that is known", r"$.")
TOLD = {
    "hung": "hung",
    "out of memory": "out-of-memory",
    "node gone": "node-gone",
    "process died": "worker-died",
    "preempted": "preempted",
    "bug": "bug",
}
"""What a `failure` event calls a cause that needs no further look."""
BROAD = {"storage": "store-away", "user error": "user-error"}
"""Those whose message may say more."""


def named(name: str) -> Cause:
    """The class of that name."""
    return next((cause for cause in CAUSES if cause.name == name), UNKNOWN)


def said_by(words: str) -> Cause:
    """The class of what an error said."""
    return next((cause for cause in CAUSES if cause.sign.search(words)), UNKNOWN)


def told_by(cause: str, message: str) -> Cause:
    """The class of a `failure` event."""
    if cause in TOLD:
        return named(TOLD[cause])
    found = said_by(message)
    return named(BROAD.get(cause, "")) if found is UNKNOWN else found
