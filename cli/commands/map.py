"""`millrace map`: a table in, the same table with columns of answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import ApiKey, AsJson, ModelsDir, ServerOrStack, StateDir, given_settings

_ASK: Final = "What to ask"
_ROWS: Final = "Which rows"
_TABLE: Final = "The table"
_BATCH: Final = "The batches"


def map_table(
    source: Annotated[
        Path, typer.Argument(help="A table: CSV, TSV, JSON Lines, Parquet or Excel; - is stdin.", metavar="TABLE")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File to write: .csv, .tsv, .jsonl or .parquet; - is stdout.", metavar="FILE"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to ask.", show_default="the only one of the server", metavar="NAME")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask for each row: {column}, or Jinja such as {{ column|upper }}.",
            rich_help_panel=_ASK,
            metavar="TEXT",
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with that text.", rich_help_panel=_ASK, metavar="FILE")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message, of the same form.", rich_help_panel=_ASK, metavar="TEXT")
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            help="Columns of the answer: 'category: billing|shipping, amount: number?', or a file with a JSON Schema.",
            rich_help_panel=_ASK,
            metavar="SCHEMA",
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of an answer in free text, or of a vector.",
            show_default="answer, or embedding",
            rich_help_panel=_ASK,
            metavar="NAME",
        ),
    ] = None,
    embed: Annotated[
        str | None,
        typer.Option(help="Embed this text of each row, in place of a prompt.", rich_help_panel=_ASK, metavar="TEXT"),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Table of rows with their answers, which the model sees before each row.",
            rich_help_panel=_ASK,
            metavar="TABLE",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 gives the most likely answer.", rich_help_panel=_ASK)
    ] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer in tokens.", show_default="that of the model", rich_help_panel=_ASK),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another parameter of each request, such as top_p=0.9; may be repeated.",
            rich_help_panel=_ASK,
            metavar="NAME=VALUE",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Ask only rows for which this is true, such as \"language == 'en'\".",
            rich_help_panel=_ROWS,
            metavar="CONDITION",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask at most so many rows, the first ones.", rich_help_panel=_ROWS)
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Ask only rows that the output lacks, or that failed; keep its other rows.",
            rich_help_panel=_ROWS,
        ),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Ask all rows anew, without answers of earlier commands.", rich_help_panel=_ROWS),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the first prompts, tokens and time, and ask nothing.", rich_help_panel=_ROWS
        ),
    ] = False,
    source_format: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Format of the table: csv, tsv, jsonl, parquet, xlsx.",
            show_default="by its name and content",
            rich_help_panel=_TABLE,
            metavar="FORMAT",
        ),
    ] = None,
    target_format: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Format of the output: csv, tsv, jsonl, parquet.",
            show_default="by its name",
            rich_help_panel=_TABLE,
            metavar="FORMAT",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Encoding of the table.", show_default="found", rich_help_panel=_TABLE, metavar="NAME"),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Delimiter of a CSV file, such as ';' or tab.",
            show_default="found",
            rich_help_panel=_TABLE,
            metavar="CHARACTER",
        ),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Sheet of an Excel file.", show_default="the first one", rich_help_panel=_TABLE, metavar="NAME"
        ),
    ] = None,
    error_column: Annotated[
        str, typer.Option(help="Column that says why a row has no answer.", rich_help_panel=_TABLE, metavar="NAME")
    ] = "error",
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Priority of the batches.", rich_help_panel=_BATCH)
    ] = None,
    window: Annotated[
        str, typer.Option(help="Time after which a batch expires: 90m, 24h, 7d.", rich_help_panel=_BATCH)
    ] = "24h",
    base_url: ServerOrStack = None,
    api_key: ApiKey = "none",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files without asking.")] = False,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model about each row of a table; the answers become columns.

    millrace map tickets.csv -o labels.csv --prompt 'Classify this ticket: {text}' --schema 'category: billing|shipping'

    Rows keep their order and their other columns. A row without an answer says why in the column error.

    When interrupted, the same command goes on, and asks for nothing twice. Starts a server for its length where none runs.
    """
    from cli.maps.inputs import (
        check_window,
        delimiter_of,
        examples_of,
        find_model,
        named_format,
        output_format,
        parameters,
        prompt_of,
        schema_file,
        schema_of,
        table_file,
        usage_errors,
    )
    from cli.maps.mapping import Limits, Mapping
    from cli.maps.run import MapRun
    from cli.output import console, print_json
    from cli.output_files import STDOUT, choose_outputs
    from cli.stack.session import server_session
    from mapping.formats.opening import open_table
    from mapping.spec import parse_spec

    if output is None and not dry_run:
        message = "Name the file to write with -o, or see prompts, tokens and time first with --dry-run."
        raise CommandFailed(message, ExitCode.USAGE)
    if update and output == STDOUT:
        raise CommandFailed("--update reads the output of an earlier command, so -o must name a file.", ExitCode.USAGE)
    if prompt is None and prompt_file is None and embed is None:
        message = "Name what to ask of each row with --prompt, such as --prompt 'Summarise: {text}'; or --embed."
        raise CommandFailed(message, ExitCode.USAGE)
    check_window(window)
    is_stdout = output == STDOUT
    name = "stdin" if source == STDOUT else source.name
    terminal = console(as_json=as_json or is_stdout)
    settings = given_settings(state_dir=state_dir, models_dir=models_dir)
    with table_file(source) as path, usage_errors():
        fields = {
            "prompt": prompt_of(prompt, prompt_file),
            "system": system,
            "embed": embed,
            "schema": schema_of(schema),
            "column": column,
            "examples": examples_of(examples),
            "where": where,
            "limit": limit,
            "error_column": error_column,
            "parameters": parameters(pairs or [], None if embed else temperature, max_tokens),
        }
        table = open_table(
            path,
            name=name,
            format=named_format(source_format),
            encoding=encoding,
            delimiter=delimiter_of(delimiter),
            sheet=sheet,
        )
        mapping = Mapping.of(parse_spec({"model": model or "any", **fields}), table)
        kind = output_format(output, target_format, table.format)
        file = None
        if output is not None and not dry_run:
            given = [each for each in (source, prompt_file, schema_file(schema), examples) if each is not None]
            (file,) = choose_outputs([output], inputs=given, force=force or update)
        if update and output is not None:
            mapping = mapping.updating(output, kind)
        with server_session(terminal, base_url, api_key, settings) as session:
            run = MapRun(
                session=session,
                console=terminal,
                name=name,
                mapping=mapping.with_model(find_model(session.client, model, mapping.mapper.endpoint)),
                limits=Limits(settings.batch_lines, settings.batch_file_bytes),
                window=window,
                priority=priority,
                is_fresh=fresh,
            )
            report, code = run.preview() if file is None else run.to_file(file, kind)
    if as_json and not is_stdout:
        print_json(report)
    raise typer.Exit(code)
