"""What is compiled for this processor: made once, whole or not at all, and never needed."""

import ctypes
import shutil
import subprocess

import pytest
import torch

from llmlab.kernels import native
from llmlab.kernels.int8 import quantize_rows_twin, w8a16_linear, w8a16_linear_twin
from llmlab.kernels.norm import rms_norm, rms_norm_twin
from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import PackedLinear, Scheme
from llmlab.kernels.paged_attention import paged_attention, paged_attention_twin
from llmlab.kernels.pointwise import swiglu, swiglu_twin
from llmlab.kernels.sample import sample_tokens, sample_tokens_twin
from tests.kernels.guards import error
from tests.kernels.test_paged_attention import Pages

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Give a cache in which nothing is compiled yet, and forget what this process has loaded."""

    def forget():
        native._library.cache_clear()
        native.native_function.cache_clear()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "llmlab"
    monkeypatch.undo()
    forget()


def linear_is_right():
    torch.manual_seed(0)
    weight, scale = quantize_rows_twin(torch.randn(40, 70))
    x = torch.randn(3, 70)
    return error(w8a16_linear(x, weight, scale), w8a16_linear_twin(x, weight, scale)) < 1e-6


def packed_layers_are_right():
    torch.manual_seed(0)
    # Of the rounding of weights, activations and results.
    bounds: dict[Scheme, float] = {
        "stored": 4e-3,
        "int8": 1e-2,
        "int8-dynamic": 2e-2,
        "int4": 1e-1,
    }
    for dtype in (torch.float32, torch.bfloat16):
        for M, K, N in ((1, 90, 70), (37, 33, 50), (8, 128, 96)):
            x, weight = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
            exact = x.double() @ weight.double().t()
            for scheme, bound in bounds.items():
                layer = PackedLinear(weight, scheme=scheme)
                assert error(layer(x).double(), exact) <= bound
                assert torch.equal(layer(x[M // 2 :]), layer(x)[M // 2 :])


def the_rest_is_right():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 5, 90), torch.randn(90)
    with serving():
        torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_twin(x, weight, 1e-5)[0])
        torch.testing.assert_close(swiglu(x, x), swiglu_twin(x, x))
    logits, ones = 3 * torch.randn(4, 1000), torch.ones(4)
    rows = (ones, 30 * ones.int(), 0.8 * ones, 0.01 * ones, torch.rand(4))
    assert torch.equal(sample_tokens(logits, *rows), sample_tokens_twin(logits, *rows))


@needs_compiler
def test_compiled_once_for_all_processes(fresh, caplog):
    caplog.set_level("INFO")
    assert linear_is_right()
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    assert "once, into" in caplog.text
    written = made.stat().st_mtime_ns
    native._library.cache_clear()
    caplog.clear()
    assert native._library() is not None
    assert made.stat().st_mtime_ns == written
    assert not caplog.records


def test_without_a_compiler(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert linear_is_right()
    assert "no C++ compiler: some operators run much slower; install" in caplog.text
    assert not fresh.exists()


def test_with_a_compiler_that_fails(fresh, monkeypatch, caplog, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "cannot do that" >&2; exit 1; }\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert linear_is_right()
    assert "C++ did not compile: cannot do that" in caplog.text
    assert not list(fresh.iterdir())


@pytest.mark.slow
@needs_compiler
def test_with_a_compiler_without_openmp(fresh, monkeypatch, caplog, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text('#!/bin/sh\ncase " $* " in *" -fopenmp "*) exit 1;; esac\nexec c++ "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setenv("CXX", str(plain))
    assert linear_is_right()
    assert native._library() is not None
    assert not caplog.records


def test_a_folder_that_cannot_be_written(fresh, caplog):
    fresh.write_text("a file where the cache would be")
    assert linear_is_right()
    assert "C++ did not compile" in caplog.text or shutil.which("c++") is None


def test_gradients_take_the_twin():
    weight, scale = quantize_rows_twin(torch.randn(4, 8))
    x = torch.randn(2, 8, requires_grad=True)
    w8a16_linear(x, weight, scale).sum().backward()
    expected = (weight.float() * scale[:, None]).sum(0)
    torch.testing.assert_close(x.grad, expected.expand(2, -1))


@needs_compiler
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_token_is_the_same_bit_for_bit_alone_and_on_any_number_of_threads(is_int8):
    torch.manual_seed(0)
    pages = Pages([(1, 1300), (4, 700), (1, 40), (12, 600)], 3, 64, 16, is_int8=is_int8)
    q = torch.randn(18, 9, 64)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(paged_attention(*pages.arguments(q), page_len=16))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for seq, (first, last) in enumerate(zip(pages.cu_new[:-1], pages.cu_new[1:], strict=True)):
        alone = paged_attention(
            q[first:last], pages.cache, pages.scale, pages.table[seq : seq + 1],
            pages.context_lens[seq : seq + 1],
            torch.tensor([0, last - first], dtype=torch.int32), page_len=16,
        )  # fmt: skip
        assert torch.equal(found[0][first:last], alone)


@needs_compiler
def test_a_row_is_the_same_bit_for_bit_among_others():
    torch.manual_seed(0)
    weight, scale = quantize_rows_twin(torch.randn(50, 200))
    x = torch.randn(7, 200)
    together = w8a16_linear(x, weight, scale)
    for row in range(7):
        assert torch.equal(together[row], w8a16_linear(x[row : row + 1], weight, scale)[0])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "processor",
    [
        "-mavx2 -mfma",
        "-msse4.2",
        "-mavx512f -mfma",
        "-mavx512f -mavx512bw -mavx512vl -mavx512bf16 -mavx512vnni -mfma",
    ],
)
def test_other_processors(processor, tmp_path, monkeypatch):
    target = tmp_path / "other.so"
    units = [str(path) for path in native._SOURCES.glob("*.cpp")]
    command = ["c++", *native._FLAGS, *processor.split(), *units, *native._openmp()]
    subprocess.run([*command, "-o", str(target)], check=True)
    native.native_function.cache_clear()
    monkeypatch.setattr(native, "_library", lambda: ctypes.CDLL(str(target)))
    assert linear_is_right()
    packed_layers_are_right()
    the_rest_is_right()
    for is_int8 in (False, True):
        for D in (16, 40, 64, 128):
            pages = Pages([(1, 700), (14, 60)], 2, D, 16, is_int8=is_int8)
            for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
                if not is_int8:
                    pages.cache = pages.cache.to(dtype)
                q = torch.randn(15, 6, D, dtype=dtype)
                for softcap in (None, 3.0):
                    found = paged_attention(*pages.arguments(q), page_len=16, softcap=softcap)
                    expected = paged_attention_twin(
                        *pages.arguments(q), 16, 0, D**-0.5, 0, softcap or 0.0
                    )
                    assert error(found, expected) <= bound
    native.native_function.cache_clear()
