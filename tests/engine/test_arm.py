"""Tiles for processors that are not here: compiled across, and their loops counted.

A loop that puts sums into memory and takes them back, or that spends its instructions on addresses,
would be seen here.
"""

import re
from typing import NamedTuple

import pytest
from processes import run_python

from fastmlp.engine.cpu.layout import ARM_ROWS

# For vectors of 16 bytes: Numba's code in LLVM's language does not depend on the processor yet.
COMPILE = """
    import re, sys
    import llvmlite.binding as llvm
    from fastmlp.engine.cpu import layout
    layout.MAX_ROWS = int(sys.argv[1]), int(sys.argv[2])
    from fastmlp.engine.cpu.kernels import jit, tiles
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    compiled = jit.translate(tiles.PIECES["tiles"], sys.argv[3], "tiles")
    triple = "aarch64-unknown-linux-gnu"
    text = re.sub("target triple = .*", f'target triple = "{triple}"', compiled.inspect_llvm())
    text = re.sub("target datalayout = .*", "", text).replace("{ noinline }", "{ alwaysinline }")
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration and function.name != compiled.native_name:
            function.linkage = "internal"
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu="generic", opt=3, reloc="pic")
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    builder.getModulePassManager().run(module, builder)
    print(machine.emit_assembly(module))
"""


class Loop(NamedTuple):
    """Counts of a loop's instructions."""

    products: int
    loads: int
    spills: int
    instructions: int


def innermost_loops(assembly):
    """Loops that multiply and have no jump inside."""
    lines, labels = assembly.splitlines(), {}
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = i
        jump = re.match(r"\s+(?:b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)", line)
        if jump is None or jump[1] not in labels:
            continue
        body = [text.strip() for text in lines[labels[jump[1]] : i] if re.match(r"\t[a-z]", text)]
        found = Loop(
            sum(text.startswith("fmla") for text in body),
            sum(text.startswith("ld") for text in body),
            sum("[sp" in text for text in body),
            len(body) + 1,
        )
        if found.products and not any(re.match(r"b\.|cb|tb", text) for text in body):
            yield found


def tile_loops(rows, dtype):
    assembly = run_python(COMPILE, *rows, dtype, FASTMLP_CPU_LEVEL="x86-64-v2")
    return list(innermost_loops(assembly))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loops_of_tiles_hold_what_they_have_to(dtype):
    loops = tile_loops(ARM_ROWS, dtype)
    assert len(loops) >= 4 * sum(ARM_ROWS)  # each turned or not, and what is left of four terms
    assert not any(loop.spills for loop in loops)
    largest = [loop for loop in loops if loop.products == 4 * 2 * ARM_ROWS[1]]
    assert len(largest) >= 2
    for loop in largest:  # by element: two vectors and a number of each row per term
        assert loop.products / loop.loads >= 2
        assert loop.instructions / loop.products <= 2


def test_more_rows_would_not_stay_in_registers():
    assert any(loop.spills for loop in tile_loops((12, 12), "float32"))
