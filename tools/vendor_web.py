"""Writes `web/vendor`: the modules of the page from npm, with their licences. `python -m tools.vendor_web`; needs npm.

A browser without an import map cannot resolve bare names (`from "preact"`), and a strict content security policy allows no inline
import map: these names become relative paths. Nothing else of the modules is changed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from core.settings import ROOT

VERSIONS: Final = {
    "preact": "11.2.0",
    "htm": "3.1.1",
    "@preact/signals-core": "1.14.5",
    "@preact/signals": "2.11.4",
    "uplot": "1.6.32",
}
FILES: Final = {  # name in web/vendor -> path in node_modules
    "preact.js": "preact/dist/preact.mjs",
    "preact-hooks.js": "preact/hooks/dist/hooks.mjs",
    "htm.js": "htm/dist/htm.module.js",
    "signals-core.js": "@preact/signals-core/dist/signals-core.mjs",
    "signals.js": "@preact/signals/dist/signals.mjs",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
}
_IMPORTED: Final = {
    "preact": "./preact.js",
    "preact/hooks": "./preact-hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_FOLDER: Final = ROOT / "web" / "vendor"


def main() -> None:
    """Install the modules into a temporary folder and copy their files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package.json").write_text(json.dumps({"dependencies": VERSIONS}))
        subprocess.run(["npm", "install", "--ignore-scripts", "--silent"], cwd=folder, check=True)
        modules = Path(folder) / "node_modules"
        shutil.rmtree(_FOLDER, ignore_errors=True)
        _FOLDER.mkdir(parents=True)
        for name, path in FILES.items():
            (_FOLDER / name).write_text(_as_vendored(name, (modules / path).read_text()))
        for package in VERSIONS:
            licence = next(path for path in (modules / package).iterdir() if path.name.upper().startswith("LICENSE"))
            name = package.removeprefix("@").replace("/", "-")
            (_FOLDER / f"{name}-{VERSIONS[package]}.LICENSE").write_text(licence.read_text())


def _as_vendored(name: str, text: str) -> str:
    text = re.sub(r"\n?//# sourceMappingURL=\S+\s*$", "\n", text)
    text = re.sub(r'\bfrom\s*"([^"]+)"', lambda found: f'from"{_IMPORTED.get(found[1], found[1])}"', text)
    return f"{text}export default uPlot;\n" if name == "uplot.js" else text


if __name__ == "__main__":
    main()
