"""Every mistake of a `sweep` section that the file alone shows: unknown fields, empty lists, bounds, refused values."""

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from shoal.errors import Problem
from shoal.spec.document import Document, Path, leaves, sort_of
from shoal.spec.explain import Fields, options, problems, shown, unknown
from shoal.spec.job import JobSpec
from shoal.spec.sweep import KINDS, LISTS, LOGARITHMIC, MOST_TRIALS, WHOLE

SPACE = ("sweep", "space")
FIXED = {
    "name": "it names runs, and every trial gets a name of its own",
    "sweep": "a sweep cannot search itself",
    "prompts": "prompts change nothing that is measured",
    "model.token": "it is no part of what is learnt",
    "data.validation": "trials would be measured on different samples",
}
"""Fields that are not searched, and why."""
SHOWN_REFUSED = 8
"""Values of one field that are told one by one."""
EXAMPLE = "optimizer.learning_rate: {loguniform: [1e-5, 1e-3]}"
WRITE = "write a list of values, or a range such as {loguniform: [1e-5, 1e-3]}"


def job_with(value: dict[str, Any], path: Sequence[str], setting: Any) -> dict[str, Any]:
    """A job's value with `setting` at `path`, its `sweep` left out; sections on the way are made where there are none."""
    job = {key: inside for key, inside in value.items() if key != "sweep"}
    section = job
    for part in path[:-1]:
        inside = section.get(part)
        section[part] = dict(inside) if isinstance(inside, dict) else {}
        section = section[part]
    section[path[-1]] = setting
    return job


def space_problems(document: Document) -> Iterator[tuple[Path, Problem]]:
    """The mistakes with their places in the file: first each field's own, then how the fields go together."""
    sweep = document.value.get("sweep")
    space = sweep.get("space") if isinstance(sweep, dict) else None
    if not isinstance(sweep, dict):
        return
    if not isinstance(space, dict) or not space:
        what = "is empty" if space in ({}, [], None) else f"is {sort_of(space)}"
        what = what if "space" in sweep else "is missing"
        yield SPACE, Problem(document.where(SPACE), what, "name a field and its values: " + EXAMPLE)
        return
    fields = Fields("job")
    for field, given in space.items():
        one = _Written(document, fields, str(field), given, str(sweep.get("search", "random")))
        for problem in one.problems():
            yield (*SPACE, field), problem
    for field in space:
        for outer in space:
            if str(field).startswith(f"{outer}."):
                where = document.where((*SPACE, field))
                yield (*SPACE, field), Problem(where, f"is part of {outer}, which is searched too", "keep one of them")
    yield from _together(document, sweep, space)


def _together(document: Document, sweep: dict[str, Any], space: dict[str, Any]) -> Iterator[tuple[Path, Problem]]:
    data = document.value.get("data")
    held_out = isinstance(data, dict) and bool(data.get("validation"))
    if sweep.get("metric", "validation.loss") == "validation.loss" and not held_out:
        what = "validation.loss is never reported: data.validation holds nothing out"
        path = ("sweep", "metric")
        fix = "set data.validation: 0.05, or sweep.metric: train.loss"
        yield path, Problem(document.where(path), what, fix)
    scheduler, search = sweep.get("scheduler"), sweep.get("search", "random")
    if scheduler == "pbt":
        fix = "search fields of optimizer alone, or use scheduler: asha"
        for field in space:
            if not str(field).startswith("optimizer."):
                what = "cannot be searched by pbt, which changes a trial while it runs"
                yield (*SPACE, field), Problem(document.where((*SPACE, field)), what, fix)
        if search == "optuna":
            path = ("sweep", "search")
            what = "optuna, and pbt changes the numbers that optuna suggested"
            yield path, Problem(document.where(path), what, "use search: random, or scheduler: asha")
    counts = [len(values) for given in space.values() if isinstance(values := _listed(given), list)]
    trials = sweep.get("trials")
    if search != "grid" or len(counts) != len(space):
        return
    combinations = math.prod(counts)
    if combinations > MOST_TRIALS:
        what = f"the grid has {combinations:,} combinations, and a sweep at most {MOST_TRIALS:,} trials"
        yield SPACE, Problem(document.where(SPACE), what, "list fewer values, or use search: random")
    elif isinstance(trials, int) and trials != combinations:
        path = ("sweep", "trials")
        what = f"{trials}, but the grid has {combinations} combinations"
        yield path, Problem(document.where(path), what, "leave it out, or use search: random")


def _listed(given: Any) -> Any:
    """The values of a list, of `choice` or of `grid`."""
    if isinstance(given, dict):
        return next((given[kind] for kind in LISTS if kind in given), None)
    return given


class _Written:
    """One line of the space, as the file has it."""

    def __init__(self, document: Document, fields: Fields, field: str, given: Any, search: str):
        self.document, self.fields, self.field, self.given, self.search = document, fields, field, given, search
        self.path = tuple(field.split("."))

    def problems(self) -> Iterator[Problem]:
        if any(isinstance(value, float) and not math.isfinite(value) for _, value in leaves(self.given)):
            return  # of the whole file such numbers are told
        where = self.document.where((*SPACE, self.field))
        known = bool(self.fields.at(self.path)) or self.path[:2] == ("deepspeed", "config")
        fixed = next((name for name in FIXED if self.field == name or self.field.startswith(f"{name}.")), None)
        if fixed:
            yield Problem(where, "cannot be searched", f"take it out: {FIXED[fixed]}")
        elif not known:
            yield Problem(where, *unknown(self.path, None, self.fields))
        if isinstance(self.given, list):
            kind, values, inside = ("grid" if self.search == "grid" else "choice"), self.given, ()
        elif isinstance(self.given, dict) and len(self.given) == 1 and next(iter(self.given)) in KINDS:
            [(kind, values)] = self.given.items()
            inside = (kind,)
        else:
            yield self._shape(where)
            return
        found = list(self._list(values, inside) if kind in LISTS else self._range(kind, values, inside))
        yield from found
        if kind not in LISTS and self.search == "grid":
            yield Problem(where, f"{kind} has no end of values for search: grid", "list them, or use search: random")
        if kind == "qloguniform" and self.search == "optuna":
            fix = "use loguniform, lograndint for whole numbers, or search: random"
            yield Problem(where, "qloguniform: Optuna has no steps between logarithms, and would leave them out", fix)
        if kind == "grid" and self.search != "grid":
            yield Problem(where, f"grid, and search is {self.search}", "write choice, or use search: grid")
        if known and not found and not fixed:
            yield from self._refused(kind, values, inside)
            if self.path == ("data",):
                yield from self._held_out(where, values)

    def _shape(self, where: str) -> Problem:
        given = self.given
        if not isinstance(given, dict):
            what = f"is {shown(self.path, given)}" if given is not None else "has no values"
            return Problem(where, what, WRITE)
        wrong = next((str(key) for key in given if key not in KINDS), None)
        if wrong is None:
            return Problem(
                where, f"says {' and '.join(given)}" if given else "is empty", "give one of " + ", ".join(KINDS)
            )
        if self.fields.at((*self.path, wrong)):
            fix = f"name the field in one piece, {self.field}.{wrong}: [...]"
            return Problem(where, f"`{wrong}` is a field of it, and no sort of values", fix)
        near = get_close_matches(wrong.replace("_", ""), KINDS, 1, 0.6)
        fix = f"did you mean `{near[0]}`?" if near else f"give one of {', '.join(KINDS)}"
        return Problem(where, f"`{wrong}` is no sort of values", fix)

    def _list(self, values: Any, inside: Path) -> Iterator[Problem]:
        where = self.document.where((*SPACE, self.field, *inside))
        if not isinstance(values, list):
            yield Problem(where, f"is {shown(self.path, values)}", "write a list of values")
        elif not values:
            yield Problem(where, "is empty", "list at least one value, or take the line out")
        elif len(values) > MOST_TRIALS:
            what = f"lists {len(values):,} values, and a sweep has at most {MOST_TRIALS:,} trials"
            yield Problem(where, what, "list fewer, or give a range such as {uniform: [low, high]}")
        else:
            twice = [value for index, value in enumerate(values) if _same(value, values[:index])]
            for value in twice[:1]:
                yield Problem(where, f"has {shown(self.path, value)} twice", "list each value once")

    def _range(self, kind: str, values: Any, inside: Path) -> Iterator[Problem]:
        where = self.document.where((*SPACE, self.field, *inside))
        names = ("low", "high", "q") if kind.startswith("q") else ("low", "high")
        numeric = isinstance(values, list) and all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
        )
        if not numeric or len(values) != len(names):
            told = values if isinstance(values, list) and len(values) < 6 else sort_of(values)
            yield Problem(where, f"is {told}", f"write [{', '.join(names)}], {len(names)} numbers")
            return
        low, high = values[:2]
        if kind in WHOLE and not all(isinstance(value, int) for value in values):
            yield Problem(where, f"is {values}", "write whole numbers, or use uniform or loguniform")
        if low > high:
            yield Problem(where, f"low {low:g} is more than high {high:g}", f"turn them round: [{high:g}, {low:g}]")
        elif low == high or (kind in WHOLE and high - low == 1):
            yield Problem(where, f"holds {low:g} alone", f"widen it, or write {self.field}: {low:g} in the job")
        if kind in LOGARITHMIC and low <= 0:
            what = f"low is {low:g}, and a number that is searched by its logarithm is above 0"
            yield Problem(where, what, f"raise low, or use {kind.replace('log', '')}")
        if kind.startswith("q") and not are_multiples(values):
            yield Problem(where, f"low and high are not multiples of q, {values[2]:g}", "choose bounds that are")

    def _refused(self, kind: str, values: Any, inside: Path) -> Iterator[Problem]:
        """Values that the field does not take: every listed one, the ends of a range."""
        whole = takes_whole(self.fields, self.path)
        stepped = kind.startswith("q") and float(values[2]).is_integer()
        if whole and kind not in (*LISTS, *WHOLE) and not stepped:
            fix = "make q, the third number, a whole one"
            if not kind.startswith("q"):
                fix = f"use {'lograndint' if kind == 'loguniform' else 'randint'}: [low, high], high left out"
            yield Problem(
                self.document.where((*SPACE, self.field)), f"{kind} gives fractions; a whole number is asked", fix
            )
            return
        if kind in LISTS:
            places = [((*inside, index), value) for index, value in enumerate(values)]
        else:
            last = values[1] - 1 if kind in WHOLE else values[1]
            ends = (values[0], last)
            places = [
                ((*inside, index), value if kind in WHOLE or whole else float(value))
                for index, value in enumerate(ends)
            ]
        refused = [(place, found) for place, value in places if (found := list(self._judge(value)))]
        for place, found in refused[:SHOWN_REFUSED]:
            at = self.document.where((*SPACE, self.field, *place))
            for problem in found:
                inside_it = problem.where.partition(f" {self.field}")[2]  # `.r`: which part of a section's value
                yield Problem(at + inside_it, problem.what, problem.fix)
        if others := refused[SHOWN_REFUSED:]:
            where = self.document.where((*SPACE, self.field))
            yield Problem(where, f"{len(others):,} other values of it cannot stand there either", "change them too")

    def _held_out(self, where: str, values: list[dict[str, Any]]) -> Iterator[Problem]:
        """Sections of `data` that hold other samples out than the job does."""
        own = self.document.value.get("data")
        held_out = own.get("validation", 0) if isinstance(own, dict) else 0
        if any(value.get("validation", 0) != held_out for value in values):
            what = "changes data.validation: trials would be measured on different samples"
            yield Problem(where, what, "give each value the job's own data.validation")

    def _judge(self, value: Any) -> Iterator[Problem]:
        trial = job_with(self.document.value, self.path, value)
        try:
            JobSpec.model_validate(trial, strict=True)
        except ValidationError as error:
            mine = [one for one in error.errors(include_url=False) if one["loc"][: len(self.path)] == self.path]
            yield from problems(mine, Document(self.document.source, trial), "job")


def takes_whole(fields: Fields, path: Path) -> bool:
    """Whether the field at `path` takes whole numbers and no fractions."""
    types = {fields.resolve(option).get("type") for option in options(fields.at(path))}
    return "integer" in types and "number" not in types


def are_multiples(values: list[float]) -> bool:
    """Whether [low, high, q] has both ends at whole multiples of a q above 0, as Ray Tune asks."""
    low, high, q = values
    return q > 0 and all(math.isclose(end / q, round(end / q)) for end in (low, high))


def _same(value: Any, others: list[Any]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)
