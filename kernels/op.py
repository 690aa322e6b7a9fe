"""How an operator of this package reaches PyTorch's dispatcher.

    define("swiglu(Tensor gate, Tensor up) -> Tensor", twin=..., fake=..., kernel="module:function")

The twin, plain PyTorch, is the specification and runs anywhere. The kernel, Triton, runs on a GPU;
under Triton's interpreter (TRITON_INTERPRET=1 in the environment) on a CPU too. Some operators have
a native function as well, C++ for a CPU. Kernels and native functions are imported when they are
first called, so that nothing here needs Triton or a compiler.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "llmlab"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels run on a CPU, one operation at a time in numpy."""

ENABLED = os.environ.get("LLMLAB_KERNELS", "triton") != "torch"
"""LLMLAB_KERNELS=torch in the environment runs the twins everywhere, to find a fault."""

_HAS_TRITON = find_spec("triton") is not None
_serving: ContextVar[bool] = ContextVar("serving", default=False)
_library = torch.library.Library(NAMESPACE, "DEF")


def define(
    schema: str,
    *,
    twin: Callable[..., Any],
    fake: Callable[..., Any],
    kernel: str,
    native: str | None = None,
    backward: Callable[..., Any] | None = None,
    keep: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Define an operator and return what calls the best of kernel, native function and twin.

    Autograd follows a twin and compilers fuse it. The first argument is a tensor.

    Args:
        schema: name, arguments and results as `torch.library` takes them.
        twin: the same in plain PyTorch.
        fake: makes empty results of the right shapes, strides and dtypes.
        kernel: `module:function` of the Triton launcher, in this package.
        native: the same of the function for a CPU; it gives NotImplemented where the twin is
            to be taken. Compilers do not look into it. Where there is a backward, as in training,
            it runs inside `serving` only.
        backward: `(ctx, *gradients) -> gradients of the arguments`; without one the twin is called
            where a gradient is wanted.
        keep: `(ctx, inputs, output)`, keeps what `backward` needs.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    launch = _launcher(kernel, fake, name)
    on_cpu = twin if native is None else _native_or_twin(native, twin, always=backward is None)
    _library.impl(name, launch, "CUDA")
    _library.impl(name, launch if INTERPRETED else _dense(on_cpu), "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=keep, lib=_library
        )
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    is_opaque = native is not None and backward is None

    def call(*arguments: Any) -> Any:
        if backward is None and _needs_gradient(arguments):
            return twin(*arguments)
        if launches(arguments[0]) or (is_opaque and torch.compiler.is_compiling()):
            return operator(*arguments)
        return on_cpu(*arguments)

    return call


def launches(x: Tensor) -> bool:
    """Tell whether kernels run on x: on a GPU where Triton is, or interpreted."""
    return (INTERPRETED or x.is_cuda) and ENABLED and _HAS_TRITON


@contextmanager
def serving() -> Iterator[None]:
    """Run the native functions of all operators, on CPUs, where no gradient is wanted.

    Elsewhere the operators of training stay PyTorch's own operations, to the last bit.
    """
    token = _serving.set(True)
    try:
        yield
    finally:
        _serving.reset(token)


def _native_or_twin(native: str, twin: Callable[..., Any], *, always: bool) -> Callable[..., Any]:
    function = _imported(native)

    def call(*arguments: Any) -> Any:
        if not ENABLED or not arguments[0].is_cpu:
            return twin(*arguments)
        # Compilers take the twin of what training uses, and fuse it.
        if not always and (
            torch.compiler.is_compiling() or not _serving.get() or _needs_gradient(arguments)
        ):
            return twin(*arguments)
        found = function()(*arguments)
        return twin(*arguments) if found is NotImplemented else found

    return call


def _needs_gradient(arguments: tuple[Any, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _imported(path: str) -> Callable[[], Callable[..., Any]]:
    """Return what imports `module:function` when it is first called."""

    @functools.cache
    def function() -> Callable[..., Any]:
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(f"llmlab.kernels.{module}"), name)

    return function


def _dense(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the results of a function the layout that `fake` promises."""

    def call(*arguments: Any) -> Any:
        found = function(*arguments)
        if found is None:
            return None
        if isinstance(found, Tensor):
            return found.contiguous()
        return tuple(tensor.contiguous() for tensor in found)

    return call


def _launcher(kernel: str, fake: Callable[..., Any], name: str) -> Callable[..., Any]:
    function = _imported(kernel)

    def launch(*arguments: Any) -> Any:
        return function()(*arguments)

    def launch_without_bfloat16(*arguments: Any) -> Any:
        """The interpreter computes bfloat16 wrongly, without a word (triton issue 11584)."""
        if not any(isinstance(a, Tensor) and a.dtype == torch.bfloat16 for a in arguments):
            return function()(*arguments)
        wanted = fake(*arguments)
        wide = [_float32(a) for a in arguments]
        found = function()(*wide)
        schema = getattr(getattr(torch.ops, NAMESPACE), name).default._schema
        for argument, own, given in zip(schema.arguments, wide, arguments, strict=True):
            if argument.is_write and own is not given:
                given.copy_(own)
        if found is None:
            return None
        if isinstance(found, Tensor):
            return found.to(wanted.dtype)
        return tuple(f.to(w.dtype) for f, w in zip(found, wanted, strict=True))

    return launch_without_bfloat16 if INTERPRETED else launch


def _float32(argument: Any) -> Any:
    is_narrow = isinstance(argument, Tensor) and argument.dtype == torch.bfloat16
    return argument.float() if is_narrow else argument
