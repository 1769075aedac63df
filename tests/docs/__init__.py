"""Every code block of README.md and of the pages in docs/ is run, or checked by its language.

A page is run from its top to its end, in a folder of its own with `batch_inputs/`, `models/` and `.venv/`, against
one running server with the models `demo` and `fake`; `fake` also answers under the names of STAND_INS in conftest.py.
Write `http://127.0.0.1:8000` and `millrace …`: the port is replaced. The commands are those of a user of the server's
machine: `OPENAI_BASE_URL`, `MILLRACE_STATE_DIR` and `MILLRACE_MODELS_DIR` are set, and `curl` ends with an error at a
status from 400.

| language | |
|---|---|
| `sh` | run by one bash for the page, with `set -e`; variables stay. A `text` or `json` block directly behind is its stdout |
| `console` | lines after `$ ` are commands, as in `sh`, and the lines below each are its output, stderr included |
| `python` | run in one namespace for the page; an output block may follow, too |
| `json`, `jsonl` | parsed; a body of a request, or a line of a batch, is checked by the server's schemas |
| `yaml` | parsed; a file with `name` and `backend` or `parameters` is loaded as a model file |
| `toml` | parsed; its keys are settings, if the block names `millrace.toml` |
| `sql` | each statement is explained by the server's database; `SHOW` is run |
| `js` | parsed by node, where there is one |
| `text`, `ini`, `nginx`, `promql` | not checked: output, diagrams, files of other programs |

In an output `…` stands for any text. An output that is JSON must have the names, types and texts that the page shows,
and may have more names; numbers may be others, or null where nothing was measured yet. `{…}`, `[…]` and `, …}` leave
the rest open, and so does `…` alone between two server-sent events.

A block that no test can run carries a comment on the line before it, with a reason of NOT_RUN_REASONS in blocks.py,
such as `<!-- not run: needs a GPU -->`. It is still parsed, and its `millrace` commands and `MILLRACE_` variables are
checked. test_blocks.py has the number of these blocks of each page. `<!-- fails -->` stands before a block whose last
command ends with an error.
"""
