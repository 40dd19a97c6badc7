"""README's table of the parameters that scikit-learn does not have, made from the code.

    python bench/parameters.py [--readme]

Names, defaults and the first sentence of each parameter's documentation come from the estimators'
signatures and docstrings; ``--readme`` puts the table into README.md.
"""

import argparse
import inspect
import re

import sklearn.neural_network
from readme import put_into_readme

import fastmlp

ESTIMATORS = ("MLPClassifier", "MLPRegressor")


def documentation(estimator) -> dict[str, str]:
    """{parameter: its description on one line}, from a docstring in numpydoc's style."""
    section = inspect.getdoc(estimator).split("\n\nAttributes\n")[0].split("Parameters\n")[1]
    # a description is indented, a name is not
    entries = re.findall(r"^(\w[\w, ]*) : .*\n((?:\s+\S.*\n?)+)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def first_sentence(text: str) -> str:
    """Up to the first full stop or semicolon that ends a clause."""
    clause = re.split(r"(?<=[^.]\.)\s+(?=[A-Z`'\"])|;\s", text)[0]
    return clause.rstrip(".").replace("``", "`").replace("|", r"\|")


def new_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Parameters of one estimator that scikit-learn's does not have."""
    theirs = inspect.signature(getattr(sklearn.neural_network, name)).parameters
    ours = inspect.signature(getattr(fastmlp, name)).parameters
    return {key: parameter for key, parameter in ours.items() if key not in theirs}


def table() -> str:
    """Markdown, in the order of the signatures."""
    found = {name: new_parameters(name) for name in ESTIMATORS}
    described = {name: documentation(getattr(fastmlp, name)) for name in ESTIMATORS}
    lines = ["| parameter | default | of | what it is |", "|---|---|---|---|"]
    for key in dict.fromkeys(key for name in ESTIMATORS for key in found[name]):
        owners = [name for name in ESTIMATORS if key in found[name]]
        which = "both" if len(owners) == 2 else f"`{owners[0]}`"
        text = first_sentence(described[owners[0]][key])
        lines.append(f"| `{key}` | `{found[owners[0]][key].default!r}` | {which} | {text} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.readme:
        put_into_readme(text, "parameters")


if __name__ == "__main__":
    main()
