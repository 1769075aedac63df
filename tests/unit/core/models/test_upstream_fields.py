"""Keys of the backend openai in a model file: what is accepted, and the sentence about each wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from core.errors import ConfigError
from core.models.fields.upstream_headers import NoSecret, read_secrets, request_headers
from core.models.model_files import ModelConfig, has_weights, load_model

URL = "base_url: http://127.0.0.1:8080/v1\n"


def load(tmp_path: Path, keys: str, backend: str = "openai") -> ModelConfig:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: m\nbackend: {backend}\n{keys}")
    return load_model(path, need_weights=True)


BAD = {
    "neither an address nor a command": ("", "mine.yaml: base_url: is missing. Write the address of the server, or a"),
    "an address and a command": (f"{URL}command: serve {{port}}", "line 4: command: starts a server, and base_url"),
    "an address without a scheme": ("base_url: host:8080/v1", "line 3: base_url must begin with http:// or https://"),
    "another scheme": ("base_url: ftp://host/v1", "base_url must begin with http:// or https://"),
    "no host": ("base_url: http:///v1", "base_url must begin with http:// or https:// and a host"),
    "a number": ("base_url: 8080", "base_url must be a list, not 8080"),
    "an empty list": ("base_url: []", "base_url: is missing"),
    "a password": ("base_url: http://me:secret@host/v1", "no user name and no password; name the variable"),
    "a query": ("base_url: http://host/v1?key=secret", "base_url must end with its path"),
    "a fragment": ("base_url: 'http://host/v1#x'", "base_url must end with its path"),
    "an endpoint": ("base_url: http://host/v1/chat/completions/", "must end before /chat/completions"),
    "a space": ("base_url: 'http://host /v1'", "printable characters without spaces"),
    "a port that is too large": ("base_url: http://host:70000/v1", "a port from 1 to 65535"),
    "a broken IPv6 address": ("base_url: 'http://[::1/v1'", "must have a valid host"),
    "the metadata of a cloud": ("base_url: http://169.254.169.254/v1", "169.254.169.254 is no address of a server"),
    "an address that nobody has": ("base_url: http://0.0.0.0:8080/v1", "0.0.0.0 is no address of a server"),
    "an address twice": ("base_url: [http://a, http://a/v1/]", "base_url names an address twice"),
    "a key in the file": (
        f"{URL}api_key_env: sk-12",
        "line 4: api_key_env must be the name of an environment variable",
    ),
    "the key under another name": (f"{URL}api_key: sk-12", "there is no key 'api_key'; did you mean 'api_key_env'?"),
    "the address under another name": ("api_base: http://a", "there is no key 'api_base'; did you mean 'base_url'?"),
    "headers that are no mapping": (f"{URL}headers: [a]", "line 4: headers must be a mapping"),
    "a header with a space": (f"{URL}headers: {{a b: c}}", "line 4: headers 'a b' is no name of a header"),
    "a header of two lines": (f'{URL}headers: {{a: "b\\r\\nc: d"}}', "the value of a must have printable ASCII"),
    "a header of the connection": (f"{URL}headers: {{Transfer-Encoding: chunked}}", "Transfer-Encoding belongs to"),
    "a header of the host": (f"{URL}headers: {{host: a}}", "host belongs to the connection or the body"),
    "a header twice": (f"{URL}headers: {{a: b, A: c}}", "headers names a header twice"),
    "a secret in a header": (f"{URL}headers: {{api-key: abc}}", "api-key is a secret: put it into the environment"),
    "a half variable": (f"{URL}headers: {{a: '${{B'}}", "has ${ without the name of a variable"),
    "two keys": (
        f"{URL}api_key_env: A\nheaders: {{authorization: '${{B}}'}}",
        "line 5: headers: Authorization is set by api_key_env; remove one of the two.",
    ),
    "no time": (f"{URL}timeout_seconds: 0", "timeout_seconds must be more than 0"),
    "no concurrency": (f"{URL}max_concurrency: 0", "max_concurrency must be a whole number from 1 to 4096, or auto"),
    "an endpoint that is none": (f"{URL}endpoints: [responses]", "must be chat, completions or embeddings"),
    "an endpoint twice": (f"{URL}endpoints: [chat, chat]", "endpoints names an endpoint twice"),
    "a port beside an address": (f"{URL}port: 80", "line 4: port: is the port of a server that `command` starts"),
    "a command without a port": ("command: serve", "line 3: command: needs {port} where the server's port belongs"),
    "a command with an open quote": ('command: "serve \'{port}"', "command cannot be split into words"),
    "an empty program": ("command: ['', '{port}']", "command must begin with the program"),
    "a relative path of health": ("command: serve {port}\nhealth_path: health", "line 4: health_path must be text"),
    "embeddings": (
        f"{URL}embeddings: true",
        "embeddings: is decided by `endpoints`, such as `endpoints: [embeddings]`",
    ),
    "adapters": (
        f"{URL}lora: [{{path: a}}]",
        "line 4: lora: is not read by backend: openai; name the adapter in model, as",
    ),
    "a template": (
        f"{URL}chat_template: x",
        "line 4: chat_template: is not read by backend: openai; the server",
    ),
    "slots": (f"{URL}slots: 4", "line 4: slots: is not read by backend: openai; max_concurrency is"),
    "an option of our engines": (
        f"{URL}gpu_layers: 4",
        "line 4: gpu_layers: is not read by backend: openai; the server",
    ),
    "a sampling parameter": (
        f"{URL}parameters:\n  temperature: 1",
        "line 5: parameters.temperature: is not read by backend: openai; bodies are passed on as they came;",
    ),
    "two names": (f"{URL}model: a\nparameters: {{model: b}}", "line 4: model: parameters.model has another name;"),
    "devices of an address": (f"{URL}devices: [cpu]", "line 4: devices: base_url names a server that has its own"),
    "memory of an address": (f"{URL}memory_bytes: 1GiB", "line 4: memory_bytes: base_url names a server that has its"),
    "replicas of an address": (f"{URL}replicas: 2", "line 4: replicas: base_url names a server that all devices share"),
    "replicas on one port": (
        "command: serve\nport: 80\ndevices: [cuda]",
        "line 4: port: servers of several replicas cannot share it",
    ),
}


@pytest.mark.parametrize(("keys", "said"), BAD.values(), ids=BAD.keys())
def test_a_wrong_key_is_named_with_the_remedy(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.yaml") as caught:
        load(tmp_path, keys)
    assert said in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("secret@", "=secret", "sk-12", "abc"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (URL, "line 3: base_url: is for backend: openai, and this model has backend: "),
        ("api_key_env: A", "line 3: api_key_env: is for backend: openai"),
    ],
)
def test_keys_of_a_server_are_refused_elsewhere(tmp_path: Path, keys: str, said: str) -> None:
    for backend in ("llama", "fake"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, keys, backend)
        assert said in str(caught.value)


def test_the_name_of_a_model_at_a_server_is_refused_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: model: is not read by backend: llama; write `parameters: \{model"):
        load(tmp_path, "model: a.gguf", "llama")


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/openai/v1", "https://host/openai/v1"),
        ("http://[::1]:80/api/v3", "http://[::1]:80/api/v3"),
    ],
)
def test_an_address_may_end_with_a_slash_or_lack_the_version(tmp_path: Path, url: str, complete: str) -> None:
    assert load(tmp_path, f"base_url: '{url}'").base_url == (complete,)


def test_a_model_of_a_server_has_its_name_there_and_defaults_of_its_own(tmp_path: Path) -> None:
    model = load(tmp_path, URL)
    assert (model.upstream_model, model.replicas, model.weights) == ("m", 1, "")
    assert (model.known_context, model.planned_slots(8)) == (None, None)
    assert [model.serves(each) for each in ("chat", "completions", "embeddings")] == [True, True, False]
    assert has_weights(model)
    assert load(tmp_path, f"{URL}model: org/x").upstream_model == "org/x"
    assert load(tmp_path, f"{URL}parameters: {{model: org/x}}").upstream_model == "org/x"
    limited = load(tmp_path, f"{URL}context_size: 4096\nmax_concurrency: 9")
    assert (limited.known_context, limited.planned_slots(8)) == (4096, 9)


def test_endpoints_decide_on_embeddings(tmp_path: Path) -> None:
    for endpoints in ("[embeddings]", "embeddings"):
        model = load(tmp_path, f"{URL}endpoints: {endpoints}")
        assert model.embeddings
        assert [model.serves(each) for each in ("chat", "completions", "embeddings")] == [False, False, True]


def test_a_command_is_started_once_unless_it_names_devices(tmp_path: Path) -> None:
    plain = load(tmp_path, "command: llama-server -m 'my model.gguf' --port {port}")
    assert plain.command == ("llama-server", "-m", "my model.gguf", "--port", "{port}")
    assert plain.replicas == 1
    assert load(tmp_path, "command: [serve, '{port}']\ndevices: [cuda]").replicas == "all"
    assert load(tmp_path, "command: serve\nport: 80\ndevices: [cuda]\nreplicas: 1").port == 80


def test_a_model_of_a_server_survives_json(tmp_path: Path) -> None:
    models = [load(tmp_path, f"{URL}endpoints: [embeddings]"), load(tmp_path, "command: serve {port}\ndevices: [cuda]")]
    adapter = TypeAdapter(list[ModelConfig])
    assert adapter.validate_json(adapter.dump_json(models)) == models


def test_the_name_at_the_server_changes_answers_and_its_address_does_not(tmp_path: Path) -> None:
    plain = load(tmp_path, URL).answers_hash
    assert load(tmp_path, f"{URL}model: other").answers_hash != plain
    assert load(tmp_path, "base_url: http://other\ntimeout_seconds: 5").answers_hash == plain


def test_secrets_come_from_the_environment_when_a_request_is_sent() -> None:
    headers = {"api-key": "${A}", "X-Org": "me"}
    secrets = read_secrets("KEY", headers, {"KEY": "sk-1\n", "A": "two", "OTHER": "x"})
    assert secrets == {"KEY": "sk-1", "A": "two"}
    filled = request_headers("KEY", headers, secrets)
    assert filled == {"api-key": "two", "X-Org": "me", "Authorization": "Bearer sk-1"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [({}, "is not set"), ({"KEY": " \n"}, "is empty"), ({"KEY": "schl\u00fcssel"}, "has characters that a header")],
)
def test_a_missing_or_broken_secret_is_named_without_its_value(environment: dict[str, str], said: str) -> None:
    with pytest.raises(NoSecret, match=f"^The environment variable KEY {said}") as caught:
        read_secrets("KEY", {}, environment)
    assert "schl" not in str(caught.value)
