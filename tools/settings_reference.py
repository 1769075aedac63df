"""Write docs/settings.md, the reference of all settings, from core/settings.py: `python -m tools.settings_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.setting_errors import PREFIX
from core.settings import MIB, ROOT, Settings

PAGE: Final = ROOT / "docs" / "settings.md"
_FIRST_OF_GROUP: Final = {
    "state_dir": "Places and services",
    "web": "Page and logs",
    "host": "Address, keys and limits of callers",
    "port": "Requests and files",
    "device_memory": "Devices and engines",
    "residence_seconds": "Models that take turns in memory",
    "sweep_seconds": "Lost work, deadlines and shutdown",
    "webhook_hosts": "Webhooks",
}
_HEAD: Final = """# Settings

All settings; `python -m tools.settings_reference` writes this page from `core/settings.py`. A setting is given, from strongest to
weakest, as:

1. an option of the command, where there is one: `millrace serve --port 9000`;
2. an environment variable, the one in the table: `MILLRACE_PORT=9000`;
3. a file that the variable with `_FILE` names: `MILLRACE_PORT_FILE=/run/secrets/port`;
4. a line of `millrace.toml` in the working directory, with the name in lower case and without `MILLRACE_`.

```toml
# millrace.toml
port = 9000
slots = 16
device_memory = "cuda:0=20GiB,cpu=8GiB"
```

A wrong value stops the start with a sentence that names the setting and its place; a variable `MILLRACE_…` that is no setting is
named on stderr and ignored. `millrace doctor` checks the settings of this machine. Keys of a single model are in its
[file](models.md#keys).
"""


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        if title := _FIRST_OF_GROUP.get(name):
            parts.append(f"\n## {title}\n\n| variable | default | meaning |\n|---|---|---|\n")
        parts.append(f"| `{_variable(name)}` | {_default(name, field)} | {_meaning(field)} |\n")
    return "".join(parts)


def _variable(name: str) -> str:
    return name.upper() if name in ("database_url", "redis_url") else f"{PREFIX}{name.upper()}"


def _default(name: str, field: FieldInfo) -> str:
    value: Any = field.get_default()  # Any: of the setting's type
    if value is PydanticUndefined or value is None or value == "":
        return "none"
    if isinstance(value, Path):
        return f"`{value.relative_to(ROOT)}` beside the code"
    if isinstance(value, bool):
        return "true" if value else "false"
    if name.endswith("_bytes") and value and value % MIB == 0:
        return f"{value} ({value // MIB} MiB)"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def _meaning(field: FieldInfo) -> str:
    """Return the description with the limits of the value, apart from a lower limit of 0, which is plain."""
    limits = {type(each).__name__: each for each in field.metadata}
    low = getattr(limits.get("Ge"), "ge", 0)
    high = getattr(limits.get("Le"), "le", None)
    bounds = [f"at least {low}"] * bool(low) + [f"at most {high}"] * bool(high)
    text = (field.description or "").replace("|", "\\|")
    return f"{text} {' and '.join(bounds).capitalize()}." if bounds else text


if __name__ == "__main__":
    PAGE.write_text(page())
