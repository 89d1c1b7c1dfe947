"""One judge in a process of its own: ``python -m workbench.integer.judges NAME PLAN TARGET`` (see ``running``)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from workbench.integer.judges.plan import Plan
from workbench.integer.judges.running import JUDGES, run_one


def main(name: str, plan: str, target: str) -> None:
    """Write a judge's rows, one line of JSON each.

    Args:
        name: the judge's.
        plan: a ``Plan`` as JSON.
        target: the file to append to.
    """
    given = json.loads(plan)
    for key in ("semantics", "operators"):
        given[key] = None if given[key] is None else tuple(given[key])
    with Path(target).open("a", encoding="utf-8") as file:
        for row in run_one(JUDGES[name], Plan(**given)):
            # A partial line would be read as such: whole lines only.
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
