"""The lower bounds of pyproject.toml as pip constraints: `python tools/lowest_bounds.py > lowest.txt`."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
bounds: dict[str, str] = {}
for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
    if bound := re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", requirement):
        bounds.setdefault(bound[1], bound[2])  # that of the project, where an extra asks for a newer one
print("\n".join(f"{name}=={version}" for name, version in bounds.items()))
