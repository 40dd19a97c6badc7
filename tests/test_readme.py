"""The README's Python runs as it stands, and it has its two commands and no more."""

import re
import warnings
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs():
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks("python"):
            exec(block, namespace)
    labels = namespace["most_likely"](namespace["X_test"])
    assert len(labels) == len(namespace["X_test"])


def test_two_commands():
    main_job, tests = blocks("sh")
    assert main_job == "python -m pip install . && python examples/quickstart.py\n"
    assert tests == 'python -m pip install -e ".[test]" && python -m pytest\n'
