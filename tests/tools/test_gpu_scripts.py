"""What a machine with a GPU runs, as far as one without can tell."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import gather
import gpu_environment
import pytest
import require_gpu

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # for who has one
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_no_gpu_is_one_line_and_code_2():
    pytest.importorskip("torch")
    for arguments in (
        ["tools/require_gpu.py"],
        ["-m", "benchmarks.gpu"],
        ["-m", "pytest", "--device", "cuda", "tests/arrays"],
    ):
        result = run(*arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "There is no GPU " in line


@pytest.mark.parametrize(
    ("error", "count", "said"),
    [(999, 0, "CUDA's driver reports error 999"), (0, 0, "sees none"), (0, 2, "GPUs: 2")],
)
def test_the_driver_is_asked(error, count, said, monkeypatch, capsys):
    class Driver:
        cuInit = staticmethod(lambda flags: error)

        @staticmethod
        def cuDeviceGetCount(pointer):
            pointer._obj.value = count
            return 0

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    if count:
        require_gpu.main()
    else:
        with pytest.raises(SystemExit, match="2"):
            require_gpu.main()
    assert said in "".join(capsys.readouterr())


def test_the_benchmark_of_a_gpu_rehearses_on_the_cpu():
    pytest.importorskip("torch")
    options = ["--floats", "6000", "--repeats", "1", "--votes", "3", "5"]
    result = run("-m", "benchmarks.gpu", "--device", "cpu", *options)
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    named = [row[0].removeprefix("| ") for row in rows[2:]]
    assert named == [
        *2 * ["mean", "median", "trimmed_mean", "meamed", "torch.sort"],
        *["digests", "packing", "unpacking", "an exchange of 6 ranks, all here"],
    ]


def test_what_is_gathered_is_all_that_is_asked_for(monkeypatch, tmp_path):
    """pip is asked for wheels of one kind of machine; what that has by itself is not kept."""
    asked = []

    def download(*arguments, **environment):
        asked.append((arguments, environment))
        for name in (
            ("horovod-0.28.1.tar.gz",)
            if len(asked) > 1
            else ("numpy-2.0-cp312.whl", "rich-15.0-py3-none-any.whl")
        ):
            (tmp_path / name).touch()

    monkeypatch.setattr(gather, "_pip", download)
    monkeypatch.setattr(sys, "argv", ["gather.py", str(tmp_path), "--python", "3.12"])
    gather.main()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["horovod-0.28.1.tar.gz", "rich-15.0-py3-none-any.whl"]
    (wheels, _), (tools, _), (source, environment) = asked
    assert {"--only-binary", "3.12", "cmake>=3.21,<4", "setuptools<81", "psutil"} <= {*wheels}
    assert not any(each.startswith(("numpy", "numba", "torch")) for each in wheels)
    assert environment == {"PYTHONPATH": tools[2]}
    assert source[-1] == "horovod==0.28.1"


def test_without_network_pip_takes_the_gathered_files(tmp_path):
    assert gpu_environment.offline_environment(tmp_path / "missing") == {}
    assert gpu_environment.offline_environment(tmp_path) == {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }


def test_an_environment_sees_what_the_machine_has(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "only_here.py").write_text("")
    assert subprocess.run([python, "-c", "import only_here"], capture_output=True).returncode
    gpu_environment.see(python, packages)
    subprocess.run([python, "-c", "import only_here, pip"], check=True)


def test_torch_without_cuda_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_environment, "torch_folder", lambda: tmp_path)
    (tmp_path / "version.py").write_text("cuda: Optional[str] = None\n")
    assert gpu_environment.torch_that_is_here() is None
    (tmp_path / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    assert gpu_environment.torch_that_is_here() == tmp_path
