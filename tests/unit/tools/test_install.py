"""`make install`: what is built, what is built again, and the sentences of those that cannot be built.

Real make, pip and environments, with a stand-in for llama.cpp: see `tests/support/stand_in_llama.py`.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import wait_for
from tests.support.stand_in_llama import Installation
from tools.install.children import Failed, errors_in
from tools.install.progress import Progress
from tools.install.toolkits import choose


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "a folder")  # with a space


def test_the_build_leaves_out_what_nothing_loads_and_prints_its_progress_alone(installation: Installation) -> None:
    status, output = installation.make("install", CMAKE_ARGS="-DMINE='a b'")
    assert status == 0, output
    built = installation.built()
    assert built["options"][:2] == ["-DMINE=a b", "-DLLAVA_BUILD=OFF"]
    assert built["options"][2].startswith("-DCMAKE_PROJECT_llama.cpp_INCLUDE=/")
    assert built["included"] == ["set(LLAMA_BUILD_COMMON OFF)\n"]
    assert not any("GGML_" in option for option in built["options"])

    lines = output.splitlines()
    assert lines[0].startswith("Compiling llama.cpp for this processor")
    assert [line.split()[1:3] for line in lines[1:-1]] == [["2", "%,"], *([str(10 * n), "%,"] for n in range(1, 11))]
    assert lines[-1].strip().startswith("llama.cpp: compiled in 0:")


def test_a_kept_build_serves_a_new_environment_but_no_other_options(installation: Installation) -> None:
    assert installation.make("install")[0] == 0
    assert installation.make("install") == (0, "make: Nothing to be done for 'install'.\n")
    installation.make_environment()
    status, output = installation.make("install")
    assert (status, output.partition(": ")[0]) == (0, "llama.cpp was compiled before")
    installation.make_environment()
    status, output = installation.make("install", CMAKE_ARGS="-DMINE=1")
    assert (status, output.partition(" ")[0]) == (0, "Compiling")


def test_each_kind_of_gpu_has_a_build_of_its_own_and_only_a_change_builds(installation: Installation) -> None:
    installation.add_toolkit("nvcc")
    pip = [str(installation.folder / ".venv/bin/python"), "-m", "pip", "wheel", "--quiet", "llama-cpp-python"]
    subprocess.run(
        pip, cwd=installation.folder, env=installation.environment, check=True
    )  # a CPU wheel is in pip's cache
    assert installation.make("install", "GPU=cpu")[0] == 0

    status, output = installation.make("install", "GPU=cuda", STAND_IN_CARD="1")
    assert status == 0, output
    assert "Compiling llama.cpp for CUDA" in output
    assert output.endswith("llama.cpp is built for CUDA, and finds a GPU.\n")
    assert "-DGGML_CUDA=ON" in installation.built()["options"]

    for same in ("GPU=cuda", "GPU=CUDA", "GPU="):
        status, output = installation.make("install", same)
        assert (status, "Compiling" in output) == (0, False)
    (installation.folder / "pyproject.toml").touch()
    status, output = installation.make("install", STAND_IN_CARD="1")  # without GPU=, after an update
    assert status == 0, output
    assert "-DGGML_CUDA=ON" in installation.built()["options"]

    status, output = installation.make("install", "GPU=cpu")
    assert status == 0, output
    assert "llama.cpp was compiled before" in output
    assert not any("GGML_" in option for option in installation.built()["options"])


def test_a_missing_toolkit_is_named_and_nothing_is_changed(installation: Installation) -> None:
    assert installation.make("install")[0] == 0
    status, output = installation.make("install", "GPU=vulkan")
    assert status != 0
    assert output.startswith(
        "GPU=vulkan needs glslc, which was not found. It comes with Vulkan's tools (on Debian 13 or Ubuntu 24.04: apt"
    )
    status, output = installation.make("install", "GPU=3090")
    assert output.startswith("GPU=3090 is not known: use cuda, hip, vulkan, cpu, or auto.")
    assert installation.make("install") == (0, "make: Nothing to be done for 'install'.\n")


def test_a_gpu_build_that_cannot_use_a_gpu_is_a_failure_each_time(installation: Installation) -> None:
    installation.add_toolkit("nvcc")
    for arguments in (["GPU=cuda"], []):
        status, output = installation.make("install", *arguments)
        assert status != 0
        assert "llama.cpp is built for CUDA, but finds no GPU: llama_supports_gpu_offload() is false." in output
        assert "Check the driver with nvidia-smi, or build for the CPU: make install GPU=cpu." in output
    assert installation.make("install", STAND_IN_CARD="1")[0] == 0, "once the driver works, nothing is compiled again"


def test_a_build_that_ignores_the_option_is_a_failure(installation: Installation) -> None:
    installation.add_toolkit("hipcc")
    status, output = installation.make("install", "GPU=hip", STAND_IN_COMPILE="ignores", STAND_IN_CARD="1")
    assert status != 0
    assert "llama.cpp was built without HIP, though it was asked for. The whole output: " in output


def test_errors_of_the_compiler_are_shown_and_those_of_pip_are_not(installation: Installation) -> None:
    status, output = installation.make("install", STAND_IN_COMPILE="fails")
    assert status != 0
    shown = output[output.index("llama.cpp was not compiled. The whole output: ") :].splitlines()
    assert shown[1:-1] == ["  file30.cpp:7:1: error: unknown type name"]
    assert not (installation.folder / ".venv" / "installed").exists()
    assert installation.make("install")[0] == 0


def test_a_package_that_cannot_be_installed_ends_the_compilation(installation: Installation) -> None:
    fifo = _fifo(installation)
    installation.need("absent-package")
    status, output = installation.make("install", STAND_IN_COMPILE="waits", STAND_IN_FIFO=fifo)
    assert status != 0
    assert "The other packages were not installed:\n  ERROR: Could not find a version" in output
    wait_for(lambda: _has_no_reader(fifo), "the end of the compiler")


def test_ctrl_c_ends_the_compilation(installation: Installation) -> None:
    fifo = _fifo(installation)
    process = installation.start("install", environment={"STAND_IN_COMPILE": "waits", "STAND_IN_FIFO": fifo})
    assert process.stdout
    with process, process.stdout:
        while "50 %" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
    assert "Traceback" not in rest
    wait_for(lambda: _has_no_reader(fifo), "the end of the compiler")


def test_a_terminal_gets_one_line_that_is_rewritten() -> None:
    terminal, now = _Terminal(), iter([0.0, 2.0, 61.0, 130.5])
    progress = Progress("llama.cpp", terminal, clock=lambda: next(now))
    progress.note("configuring")
    progress.show(39, 78)
    progress.close("compiled")
    assert terminal.getvalue().split("\r\x1b[K") == [
        "", "  llama.cpp: configuring … 0:02", "  llama.cpp:  50 %, 39 of 78 files, 1:01", "  llama.cpp: compiled in 2:10\n",
    ]  # fmt: skip


def test_a_build_inside_the_build_does_not_count() -> None:
    log = io.StringIO()
    progress = Progress("llama.cpp", log, clock=lambda: 0.0)
    for done, total in ((0, 2), (1, 2), (41, 400), (2, 2), (42, 400), (80, 400)):
        progress.show(done, total)
    shown = [line.split("%, ")[1].split(" files")[0] for line in log.getvalue().splitlines()]
    assert shown == ["0 of 2", "1 of 2", "41 of 400", "80 of 400"]


@pytest.mark.parametrize(
    ("vendor", "compilers", "kind", "sentence"),
    [
        ("0x10de", ["nvcc", "glslc"], "cuda", "the build is for CUDA"),
        ("0x10de", ["glslc"], "vulkan", "the build is for Vulkan"),
        ("0x1002", ["hipcc", "nvcc"], "hip", "the build is for HIP"),
        ("0x1002", [], None, "no hipcc; the build is for the CPU.\nTo use the GPU, install AMD's ROCm"),
        ("0x8086", ["glslc"], None, "no GPU of NVIDIA or AMD was found; the build is for the CPU"),
    ],
)
def test_auto_takes_the_card_and_its_toolkit_and_prints_its_choice(
    vendor: str,
    compilers: list[str],
    kind: str | None,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "card0" / "device").mkdir(parents=True)
    (tmp_path / "card0" / "device" / "vendor").write_text(f"{vendor}\n")
    for compiler in compilers:
        (tmp_path / compiler).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tools.install.toolkits.HOMES", {})
    toolkit = choose("auto", None, nvidia=tmp_path / "none", sysfs=tmp_path)
    assert (toolkit and toolkit.kind) == kind
    assert sentence in capsys.readouterr().out


def test_a_card_that_the_first_build_does_not_use_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    assert choose("", None, nvidia=tmp_path, sysfs=tmp_path) is None
    assert "A GPU of NVIDIA is here: `make install GPU=auto` builds for it." in capsys.readouterr().out
    assert choose("", "cpu", nvidia=tmp_path, sysfs=tmp_path) is None
    assert capsys.readouterr().out == ""


def test_an_unknown_kind_fails() -> None:
    with pytest.raises(Failed, match="GPU=metal is not known"):
        choose("metal", None)


def test_an_output_without_errors_ends_with_its_last_lines() -> None:
    assert errors_in(["first", "", "last"]) == "  first\n  last"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _fifo(installation: Installation) -> str:
    """A pipe that nothing writes to; a stand-in that waits reads it, until it ends."""
    path = installation.folder / "fifo"
    os.mkfifo(path)
    return str(path)


def _has_no_reader(fifo: str) -> bool:
    """Is no process waiting for the other end of the pipe? Opening it for writing fails then."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return True
    return False
