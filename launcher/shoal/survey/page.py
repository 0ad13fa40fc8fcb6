"""A survey as one HTML page: nothing is fetched, no script runs, and what rows say is text."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from shoal.survey.figures import Survey
from shoal.survey.report import facts

TEMPLATE = "survey.html.jinja"


def page(found: Survey, name: str) -> str:
    """`name`: of the job."""
    # rows are strangers' text: autoescape for every name of template, not just those that end in .html
    environment = Environment(
        loader=PackageLoader("shoal.survey", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["comma"] = "{:,}".format
    environment.filters["percent"] = lambda share: f"{share:.2%}"
    return environment.get_template(TEMPLATE).render(found=found, name=name, facts=list(facts(found)))
