"""`models add hf:…` and `models add https://…` against a stand-in hub, by the unmodified client of the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from cli.errors import CommandFailed
from cli.models.sources import hub as hub_module
from core.models.models_folder import load_models
from tests.support.command import millrace
from tests.support.hub import StandInHub
from tests.support.tiny_models import write_tiny_lora
from tests.unit.cli.models.conftest import DEMO, Command, add_file, visible
from tests.unit.core.models.test_gguf_header import parts

TINY = "hf:acme/tiny-GGUF"


def downloads(hub: StandInHub) -> list[str]:
    """The ranges of the downloads of large files."""
    return [asked for method, path, asked in hub.requests if method == "GET" and path.startswith("/stored/")]


def test_the_unmodified_client_gets_files_from_the_stand_in(stand_in: StandInHub, tmp_path: Path) -> None:
    import huggingface_hub

    assert Path(huggingface_hub.hf_hub_download("acme/tiny-GGUF", "tiny-Q8_0.gguf")).read_bytes() == DEMO
    folder = huggingface_hub.snapshot_download("acme/tiny-GGUF", cache_dir=str(tmp_path / "snapshot"))
    assert len(list(Path(folder).iterdir())) == 3
    assert stand_in.leaks == []


def test_a_repository_becomes_a_model_that_a_server_takes_up(command: Command, stand_in: StandInHub) -> None:
    printed = command.text(TINY)
    assert "Q4_K_M  1 MiB  tiny-Q4_K_M.gguf  ← chosen" in printed
    assert "Chosen: Q4_K_M, since it is the usual compromise of size and quality." in printed
    assert 'try     millrace chat --model tiny "Who are you?"' in printed
    model = load_models(command.models, need_weights=True).get("tiny")
    assert model is not None
    assert Path(model.parameters.model).read_bytes() == DEMO
    assert visible(command.models) == {"tiny", "tiny.yaml"}
    assert not (command.models / ".downloads").exists()


def test_quantisation_file_and_revision_may_be_named(command: Command, stand_in: StandInHub) -> None:
    assert command.add(f"{TINY}:q8_0", name="a")["weights"] == "a/tiny-Q8_0.gguf"
    assert command.add(f"{TINY}/tiny-Q8_0.gguf@main", name="b")["weights"] == "b/tiny-Q8_0.gguf"
    assert "has no Q2_K. It has:\n  Q4_K_M" in command.failure(f"{TINY}:Q2_K")
    assert "acme/tiny-GGUF has no file x.gguf. It has tiny-Q4_K_M.gguf" in command.failure(f"{TINY}/x.gguf")
    assert command.failure(f"{TINY}@v9") == "acme/tiny-GGUF has no revision v9."


def test_a_cut_connection_is_resumed(command: Command, stand_in: StandInHub) -> None:
    stand_in.faults.cut_after = [400_000, 300_000]
    command.add(TINY)
    assert downloads(stand_in) == ["", "bytes=400000-", "bytes=700000-"]
    assert (command.models / "tiny" / "tiny-Q4_K_M.gguf").read_bytes() == DEMO


def test_the_next_command_continues_a_download_that_failed(command: Command, stand_in: StandInHub) -> None:
    stand_in.faults.cut_after = [400_000, 0, 0, 0, 0]
    assert command.failure(TINY) == (
        "tiny-Q4_K_M.gguf could not be downloaded: the connection was cut. 391 KiB are kept: the same command continues."
    )
    command.add(TINY)
    assert downloads(stand_in)[-1] == "bytes=400000-"
    assert (command.models / "tiny" / "tiny-Q4_K_M.gguf").read_bytes() == DEMO


def test_an_interrupted_download_continues(
    command: Command, stand_in: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object, num_bytes: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("cli.commands.models_add._Bar.advance", interrupt)
        command.add(TINY)
    assert visible(command.models) == set()
    part = next((command.models / ".downloads").rglob("*.part")).stat().st_size
    command.add(TINY)
    assert part > 0
    assert downloads(stand_in) == ["", f"bytes={part}-"]


def test_wrong_bytes_are_deleted_and_the_next_command_starts_again(command: Command, stand_in: StandInHub) -> None:
    stand_in.faults.wrong_bytes = 1
    assert "has another checksum than its host states; the bytes were deleted." in command.failure(TINY)
    command.add(TINY)
    assert downloads(stand_in) == ["", ""]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(command: Command, stand_in: StandInHub, status: int) -> None:
    stand_in.faults.api_statuses = [status, status]
    stand_in.faults.statuses = [status, status]
    command.add(TINY)
    assert (stand_in.faults.api_statuses, stand_in.faults.statuses) == ([], [])


def test_a_hub_that_stays_busy_is_reported(command: Command, stand_in: StandInHub) -> None:
    stand_in.faults.api_statuses = [503] * 9
    assert command.failure(TINY) == "The hub answers 503 about acme/tiny-GGUF. Try again later."
    stand_in.faults.api_statuses = []
    stand_in.faults.statuses = [503] * 9
    assert "could not be downloaded: the server answers 503." in command.failure(TINY)


def test_a_gated_repository_says_what_to_do(
    command: Command, stand_in: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.gated, stand_in.token = frozenset({"acme/tiny-GGUF"}), "good"
    gated = (
        f"acme/tiny-GGUF is gated: accept its licence at {stand_in.endpoint}/acme/tiny-GGUF, "
        "then set HF_TOKEN to a token of that account."
    )
    assert command.failure(TINY) == gated
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert "The hub does not accept the token: check HF_TOKEN" in command.failure(TINY)
    monkeypatch.setenv("HF_TOKEN", "good")
    command.add(TINY)
    assert stand_in.leaks == [], "the token went to another host"


def test_what_the_hub_has_not_is_named(command: Command, stand_in: StandInHub) -> None:
    add_file(stand_in, "acme/tensors/model.safetensors", b"x")
    add_file(stand_in, "acme/torch/pytorch_model.bin", b"x")
    add_file(stand_in, "acme/empty/README.md", b"x")
    add_file(stand_in, "acme/eyes/mmproj-F16.gguf", DEMO)
    assert "There is no repository acme/none on the hub, or it is private" in command.failure("hf:acme/none")
    assert "acme/tensors on the hub has safetensors and no GGUF file. Look for" in command.failure("hf:acme/tensors")
    assert "convert_hf_to_gguf.py" in command.failure("hf:acme/tensors")
    assert "weights of PyTorch and no GGUF file" in command.failure("hf:acme/torch")
    assert command.failure("hf:acme/empty") == "acme/empty on the hub has no GGUF file."
    assert "only of its image or sound part" in command.failure("hf:acme/eyes")


def test_all_parts_of_a_split_model_are_fetched(command: Command, stand_in: StandInHub, tmp_path: Path) -> None:
    source = tmp_path / "parts"
    source.mkdir()
    for path in parts(source, 3, 3, layers=1):
        add_file(stand_in, f"acme/big/Q8_0/{path.name}", path.read_bytes())
    command.add("hf:acme/big")
    assert len(list((command.models / "big").iterdir())) == 3
    (stand_in.folder / "acme/big/Q8_0/big-00002-of-00003.gguf").unlink()
    assert "big-00002-of-00003.gguf is missing: the model has 3 parts" in command.failure("hf:acme/big", name="x")


def test_fetched_files_that_are_no_model_are_deleted(command: Command, stand_in: StandInHub, tmp_path: Path) -> None:
    add_file(stand_in, "acme/lora/lora.gguf", write_tiny_lora(tmp_path / "l.gguf").read_bytes())
    add_file(stand_in, "acme/page/page.gguf", b"<html>")
    assert "lora.gguf is a LoRA adapter, not a model: name it under `lora`" in command.failure("hf:acme/lora")
    assert "page.gguf is no GGUF file: it is a web page" in command.failure("hf:acme/page")
    assert [path for path in (command.models / ".downloads").rglob("*") if path.is_file()] == []


def test_files_in_the_clients_cache_are_not_fetched_again(command: Command, stand_in: StandInHub) -> None:
    import huggingface_hub

    huggingface_hub.hf_hub_download("acme/tiny-GGUF", "tiny-Q4_K_M.gguf")
    stand_in.requests.clear()
    command.add(TINY)
    assert downloads(stand_in) == []


def test_offline_only_the_clients_cache_is_used(
    command: Command, stand_in: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.snapshot_download("acme/tiny-GGUF")
    stand_in.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert command.add(f"{TINY}:Q8_0")["weights"] == "tiny/tiny-Q8_0.gguf"
    assert command.failure("hf:acme/other") == (
        "acme/other is not in the cache of huggingface-hub, and HF_HUB_OFFLINE forbids to download it."
    )
    assert stand_in.requests == []


def test_a_hub_that_cannot_be_reached_is_named(
    command: Command, stand_in: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The hub at 127.0.0.1:9 cannot be reached" in command.failure(TINY)


def test_files_that_are_stored_in_xet_come_over_http(command: Command, stand_in: StandInHub) -> None:
    stand_in.is_xet = True
    command.add(TINY)
    assert downloads(stand_in) == [""]


def test_without_the_package_one_sentence_names_the_extra(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = command.failure(TINY)
    assert message.startswith("Models of the hub need the package huggingface-hub: ")
    assert message.endswith(f"{sys.executable} -m pip install 'millrace[hub]'.")


def test_the_variables_of_the_client_work_in_a_process_of_its_own(stand_in: StandInHub, tmp_path: Path) -> None:
    stand_in.gated, stand_in.token = frozenset({"acme/tiny-GGUF"}), "good"
    done = millrace(
        "models", "add", TINY, "--models-dir", tmp_path / "m",
        cwd=tmp_path, HF_ENDPOINT=stand_in.endpoint, HF_TOKEN="good", HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "m" / "tiny.yaml").read_text())["parameters"] == {
        "model": "tiny/tiny-Q4_K_M.gguf"
    }
    assert "Downloading tiny-Q4_K_M.gguf: 0 bytes of 1 MiB are here." in done.stderr


def test_an_address_is_downloaded_and_resumed_only_for_the_same_version(command: Command, stand_in: StandInHub) -> None:
    address = f"{stand_in.endpoint}/acme/tiny-GGUF/resolve/main/tiny-Q8_0.gguf"
    stand_in.faults.cut_after = [500_000, 0, 0, 0, 0]
    assert "488 KiB are kept" in command.failure(address)
    assert command.add(address)["weights"] == "tiny/tiny-Q8_0.gguf"
    assert downloads(stand_in)[-1] == "bytes=500000-"
    command.add(f"{address}?token=secret", name="signed")
    assert "secret" not in (command.models / "signed.yaml").read_text()
    assert "secret" not in command.failure(f"{stand_in.endpoint}/nowhere/x.gguf?token=secret")
    stand_in.faults.cut_after, stand_in.faults.ignores_range = [500_000], True
    command.add(address, name="again")
    assert (command.models / "again" / "tiny-Q8_0.gguf").read_bytes() == DEMO


def test_addresses_that_lead_elsewhere_are_not_followed(command: Command, stand_in: StandInHub, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(DEMO)
    address = f"{stand_in.endpoint}/acme/tiny-GGUF/resolve/main/tiny-Q8_0.gguf"
    stand_in.faults.redirect_to = secret.as_uri()
    assert "leads to an address that is not http or https" in command.failure(address)
    stand_in.faults.redirect_to = address
    assert "redirects in a circle" in command.failure(address)
    assert "there is no such file" in command.failure(f"{stand_in.endpoint}/nowhere/x.gguf")
    assert "the server cannot be reached" in command.failure("http://127.0.0.1:9/x.gguf")


def test_a_split_model_at_an_address_is_fetched_with_all_parts(
    command: Command, stand_in: StandInHub, tmp_path: Path
) -> None:
    source = tmp_path / "parts"
    source.mkdir()
    for path in parts(source, 2, 2, layers=1):
        add_file(stand_in, f"acme/big/{path.name}", path.read_bytes())
    command.add(f"{stand_in.endpoint}/acme/big/resolve/main/big-00001-of-00002.gguf")
    names = {path.name for path in (command.models / "big").iterdir()}
    assert names == {"big-00001-of-00002.gguf", "big-00002-of-00002.gguf"}


def test_one_download_of_a_file_at_a_time(command: Command, stand_in: StandInHub) -> None:
    import fcntl

    stand_in.faults.cut_after = [1000, 0, 0, 0, 0]
    command.failure(TINY)
    part = next((command.models / ".downloads").rglob("*.part"))
    with part.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert command.failure(TINY) == "tiny-Q4_K_M.gguf is being downloaded by another command."


def test_a_name_of_no_repository_is_refused(stand_in: StandInHub) -> None:
    from cli.models.sources.source import HubSource

    with pytest.raises(CommandFailed, match="is no name of a repository"):
        hub_module.Hub().files(HubSource(repository="acme/ti--ny"))
