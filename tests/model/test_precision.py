"""Which dtype a model runs in, decided without torch."""

import subprocess
import sys

import pytest

from indexer.errors import ModelError
from indexer.model import precision
from indexer.model.precision import resolve_dtype

BF16 = "flags : fpu avx2 avx512_bf16 amx_tile\n"


@pytest.mark.parametrize(
    ("facts", "dtype"),
    [
        (BF16, "bfloat16"),
        ("flags : fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("flags : fpu avx2 avx512f\n", "float32"),
        ("", "float32"),
        (None, "float32"),
    ],
)
def test_auto_follows_the_processor(tmp_path, monkeypatch, facts, dtype):
    cpuinfo = tmp_path / "cpuinfo"
    if facts is not None:
        cpuinfo.write_text(facts)
    monkeypatch.setattr(precision, "_CPU_FACTS", cpuinfo)
    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("auto", "cuda") == "float16"
    assert resolve_dtype("float32", "cuda") == "float32"


def test_what_is_no_dtype_is_refused():
    with pytest.raises(ModelError, match=r"precision\.model = 'int8'"):
        resolve_dtype("int8", "cpu")


def test_a_driver_decides_without_torch():
    code = "import sys, indexer.model.precision; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"
