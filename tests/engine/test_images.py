"""Images of object code: what LLVM emits is placed, linked and run, or refused."""

import ctypes
import math

import pytest
from llvmlite import binding

from fastmlp.engine import images, processor

pytestmark = pytest.mark.skipif(not images.SUPPORTED, reason="LLVM loads the code here")

CALLS = """
declare double @hypot(double, double)
declare double @cos(double)

define double @entry(double %x, double %y) {
  %h = call double @hypot(double %x, double %y)
  %g = call double @hypot(double %h, double 12.0)
  %c = call double @cos(double 0.0)
  %r = fadd double %g, %c
  ret double %r
}
"""
TABLE = """
@table = internal constant [4 x double] [double 1.5, double 2.5, double 3.5, double 4.5]

define internal double @other(i64 %i) noinline {
  %p = getelementptr [4 x double], ptr @table, i64 0, i64 %i
  %v = load double, ptr %p
  ret double %v
}

define double @entry(i64 %i) {
  %v = call double @other(i64 %i)
  %w = fmul double %v, 3.0
  ret double %w
}
"""
VARIABLE = """
@count = internal global i64 0

define i64 @entry() {
  %v = load i64, ptr @count
  %w = add i64 %v, 1
  store i64 %w, ptr @count
  ret i64 %w
}
"""
POINTERS = """
@names = internal constant [2 x ptr] [ptr @entry, ptr @names]

define ptr @entry(i64 %i) {
  %p = getelementptr [2 x ptr], ptr @names, i64 0, i64 %i
  %v = load ptr, ptr %p
  ret ptr %v
}
"""
UNKNOWN = """
declare i64 @no_such_function()

define i64 @entry() {
  %v = call i64 @no_such_function()
  ret i64 %v
}
"""


def emit(text):
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = binding.parse_assembly(f'target triple = "{binding.get_process_triple()}"\n{text}')
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu=processor.LEVELS[processor.LEVEL].cpu, opt=2, reloc="pic", codemodel="default"
    )
    return machine.emit_object(module)


def run(text, result, *types):
    function = ctypes.CFUNCTYPE(result, *types)
    return function(images.load(images.link(emit(text), "entry")))


def test_functions_of_the_c_library_are_called():
    function = run(CALLS, ctypes.c_double, ctypes.c_double, ctypes.c_double)
    assert function(3.0, 4.0) == math.hypot(5.0, 12.0) + 1.0


def test_constants_and_own_functions_are_found():
    function = run(TABLE, ctypes.c_double, ctypes.c_int64)
    assert [function(i) for i in range(4)] == [4.5, 7.5, 10.5, 13.5]


@pytest.mark.parametrize("text", [VARIABLE, POINTERS])
def test_what_needs_more_than_that_is_refused(text):
    with pytest.raises(images.NotSelfContained):
        images.link(emit(text), "entry")


def test_a_function_that_is_not_there_is_refused():
    with pytest.raises(images.NotSelfContained, match="no function other_entry"):
        images.link(emit(CALLS), "other_entry")
    image = images.link(emit(UNKNOWN), "entry")
    with pytest.raises(OSError, match="has no function no_such_function"):
        images.load(image)


def test_where_memory_may_not_be_executed(monkeypatch):
    class NoExecution:
        mmap = images._libc().mmap

        def mprotect(self, *arguments):
            return -1

    monkeypatch.setattr(images, "_libc", NoExecution)
    with pytest.raises(OSError, match="Kernels need executable memory"):
        images.load(images.link(emit(TABLE), "entry"))


def test_features_are_those_that_llvm_sees():
    seen = {name for name, there in binding.get_host_cpu_features().items() if there}
    known = processor.LEVELS["x86-64-v4"].features
    assert processor.features() & known == seen & known
