"""The tasks of restoration by name."""

import re

from diffit.config import nearest
from diffit.errors import UsageError
from diffit.restoration.learned_tasks import LEARNED
from diffit.restoration.measured_tasks import FAMILIES, MEASURED
from diffit.restoration.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*MEASURED, *LEARNED)}
"""Name to task; `find_task` knows other numbers in them too."""


def find_task(name: str) -> Task:
    """The task called ``name``; UsageError with the nearest name if there is none."""
    if name in TASKS:
        return TASKS[name]
    for pattern, task in FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return task(int(match[1]))
    raise UsageError(f"there is no task {name!r}; {nearest(name, list(TASKS))}")
