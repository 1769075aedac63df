"""`millrace validate` and `millrace estimate`: check a batch file before it is sent.

`validate` needs no server: a separate process checks the file against the models of this machine. `estimate` uses a server, which
has measured its own speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.batches.text import error_text, estimate_text
from cli.errors import CommandFailed, ExitCode
from cli.options import ApiKey, AsJson, BaseUrl, ModelsDir, connected
from cli.output import Source, opened, print_json, printable, remark

if TYPE_CHECKING:
    from cli.client import Json

BatchFile = Annotated[Path, typer.Argument(help="A batch file; - is stdin.", metavar="FILE")]
Endpoint = Annotated[
    str | None, typer.Option(help="Endpoint of the batch.", show_default="the url of the first line", metavar="PATH")
]


def validate(
    source: BatchFile,
    endpoint: Endpoint = None,
    max_errors: Annotated[int, typer.Option(min=1, help="List at most this many errors; all are counted.")] = 10_000,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Report everything that is wrong with a batch file, without a server.

    Exit code 0: nothing. 3: some lines would fail. 4: the file would not be accepted.
    """
    with opened(source) as content:
        report = _report(content, endpoint, max_errors, models_dir)
    print_report(report, as_json=as_json)
    raise typer.Exit(_outcome(report))


def estimate(
    source: BatchFile,
    endpoint: Endpoint = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = "none",
    as_json: AsJson = False,
) -> None:
    """Estimate the tokens of a batch file and its completion time on the server. Exit codes are those of validate."""
    with opened(source) as content, connected(base_url, api_key) as client:
        report = client.validate(content.name, content.stream, endpoint)
    print_report(report, as_json=as_json)
    if not as_json:
        print(estimate_text(report["estimate"]))
    raise typer.Exit(_outcome(report))


def _report(content: Source, endpoint: str | None, max_errors: int, models_dir: Path | None) -> Json:
    """Run the check in a process of its own, so that this command never loads the engine."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "workers.validation.report",
        str(content.path),
        "--max-errors",
        str(max_errors),
    ]
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if models_dir is not None:
        environment["MILLRACE_MODELS_DIR"] = str(models_dir)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        code = ExitCode.USAGE if done.returncode == ExitCode.USAGE else ExitCode.ERROR
        last = done.stderr.strip().splitlines()[-1:] or ["the file could not be checked"]
        raise CommandFailed(last[0].removeprefix("millrace validate: "), code)
    report: Json = json.loads(done.stdout)
    return report


def print_report(report: Json, *, as_json: bool) -> None:
    """Print a `BatchValidation` as text, or unchanged as JSON."""
    if as_json:
        print_json(report)
        return
    for error in report["errors"]:
        custom_id = f" [{error['custom_id']}]" if error["custom_id"] else ""
        param = f"{error['param']}: " if error["param"] else ""
        print(printable(f"{error_text({**error, 'message': param + error['message']})}{custom_id}"))
    if (hidden := report["num_errors"] - len(report["errors"])) > 0:
        print(f"… and {hidden} more errors")
    for model in report["models"]:
        print(
            f"{model['model']}: {model['lines']} lines, {model['prompt_tokens']:,} prompt tokens, "
            f"answers of at most {model['max_output_tokens']:,}"
        )
    verdict = "would be accepted" if report["is_valid"] else "would not be accepted"
    failing = f", {report['lines_failing']} would fail" if report["lines_failing"] else ""
    over = (
        f", {report['lines_over_context']} of them for a prompt over the context"
        if report["lines_over_context"]
        else ""
    )
    if unchecked := report.get("lines_unchecked"):  # absent in the report of an older server
        print(
            f"{unchecked} lines were not checked for their schema, grammar or tools: there are too many different ones, or "
            "only a server upstream can"
        )
    print(f"{report['lines']} lines{failing}{over}; the file {verdict}")


def _outcome(report: Json) -> ExitCode:
    if not report["is_valid"]:
        return ExitCode.BATCH_DID_NOT_COMPLETE
    if report["lines_failing"]:
        remark(f"{report['lines_failing']} lines would fail.")
        return ExitCode.SOME_LINES_FAILED
    return ExitCode.FINE
