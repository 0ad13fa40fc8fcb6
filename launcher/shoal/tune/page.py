"""A sweep as one HTML page: nothing is fetched, no script runs, and what names and values say is text."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from shoal.display import duration
from shoal.tune import chart
from shoal.tune.board import Board
from shoal.tune.folder import SweepPlan
from shoal.tune.importance import GOOD, importance
from shoal.tune.space import brief, cells, columns, said
from shoal.tune.table import dimension_words, why

TEMPLATE = "sweep.html.jinja"


def page(found: Board, plan: SweepPlan) -> str:
    """The page of a sweep as it stands."""
    # names come from job files: autoescape for every name of template, not just those that end in .html
    environment = Environment(
        loader=PackageLoader("shoal.tune", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "comma": "{:,}".format,
        "percent": lambda share: f"{share:.0%}",
        "brief": brief,
        "duration": duration,
        "value": lambda number: "" if number is None else f"{number:.4f}",
    }
    dimensions = plan.spec.dimensions
    words = {
        row.number: f"trial {row.number}, {row.state}: {found.metric} {_value(found.score(row))}, {said(row.params)}"
        for row in found.rows
    }
    axes, lines = chart.parallel(found, dimensions, words)
    return environment.get_template(TEMPLATE).render(
        found=found,
        plan=plan,
        space={field: dimension_words(one) for field, one in dimensions.items()},
        curves=chart.curves(found, words),
        axes=axes,
        lines=lines,
        importance=importance(found, dimensions),
        good=GOOD,
        why=why,
        columns=columns([row.params for row in found.rows]),
        cells={row.number: cells(row.params) for row in found.rows},
        chart=chart,
    )


def _value(number: float | None) -> str:
    return "none" if number is None else f"{number:.4f}"
