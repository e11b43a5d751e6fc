"""Cuts the client's wheel out of the repository: `pqs_client`, and in `pqs_client/_service` the modules it imports.

In the repository the client imports `app.domain`, `app.errors` and the answers in `app.wire`, which are the service's
own. A user of the client may have another module named `app`, so the wheel has copies of those modules, under another
name.
"""

import ast
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "pqs_client"
HOME = f"{PACKAGE}/_service"  # of the service's modules in the wheel
IMPORT = re.compile(r"^(\s*from) app\.", re.MULTILINE)
ALLOWED = sys.stdlib_module_names | {"httpx", "msgspec", PACKAGE}


class CutClient(BuildHookInterface[Any]):
    """Cuts the package in a temporary folder, and puts it into the archive that is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Cut the package, unless it is cut already, in a source archive."""
        root = Path(self.root)
        package = root / PACKAGE
        if not (root / HOME).is_dir():
            self._folder = tempfile.mkdtemp(prefix="pqs-client-")
            package = cut(root / PACKAGE, root.parents[1], Path(self._folder))
        build_data["force_include"][str(package)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)


def cut(package: Path, repository: Path, folder: Path) -> Path:
    """Write the package, with the service's modules that it needs, into `folder`, and return its path.

    Raises ImportError if one of its modules imports a package that the client does not depend on.
    """
    made = folder / PACKAGE
    shutil.copytree(package, made, ignore=shutil.ignore_patterns("__pycache__"))
    waiting = [name for file in made.rglob("*.py") for name in _imported(file) if name.startswith("app.")]
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        source = repository / (name.replace(".", "/") + ".py")
        target = folder / HOME / source.relative_to(repository / "app")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        waiting += [each for each in _imported(source) if each.startswith("app.")]
    for directory in {path.parent for path in (folder / HOME).rglob("*.py")} | {folder / HOME}:
        (directory / "__init__.py").touch()
    for file in made.rglob("*.py"):
        file.write_text(
            IMPORT.sub(rf"\1 {HOME.replace('/', '.')}.", file.read_text(encoding="utf-8")), encoding="utf-8"
        )
        if foreign := {name.partition(".")[0] for name in _imported(file)} - ALLOWED:
            raise ImportError(f"{file.relative_to(folder)} imports {', '.join(sorted(foreign))}")
    shutil.copyfile(repository / "LICENSE", made / "LICENSE")
    return made


def _imported(file: Path) -> Iterator[str]:
    """The names of the modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
