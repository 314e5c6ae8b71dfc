"""Cross-compile the hopper kernel for sm_90 without a GPU; prints what the assembler says, as JSON. Run by a test."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from elastic_attention.kernels.hopper.layout import Shape
from elastic_attention.kernels.hopper.prefill import REGISTERS, hybrid_prefill

POINTERS = {"out": "bf16", "lse": "fp32", "list_indices": "i16", "modes": "u8"}


def compile_shape(shape: Shape, dtype: str) -> dict[str, object]:
    """Assemble the kernel for one shape.

    Returns:
        registers, spills (bytes), warnings, shared (bytes) and the number of matrix instructions by kind.
    """
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    signature: dict[str, str] = {}
    for name in hybrid_prefill.arg_names:
        if name.endswith("_desc"):
            rows = 64 if name[0] in "qo" else 128
            signature[name] = f"tensordesc<{dtype}[1, 1, {rows}, {shape.head_dim}],{layout!r}>"
        elif name.isupper():
            signature[name] = "constexpr"
        elif name.startswith("num_") or name in ("list_rows", "list_room", "local_window", "block"):
            signature[name] = "i32"
        else:
            signature[name] = "fp32" if name == "scale" else "*" + POINTERS.get(name, "i32").replace("bf16", dtype)
    launched, consumer, producer = REGISTERS[shape.consumers]
    constants = {"SHAPE": shape, "CONSUMER": consumer, "PRODUCER": producer}
    kernel = triton.compile(
        GluonASTSource(hybrid_prefill, signature, constexprs=constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4, "maxnreg": launched},
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        report = subprocess.run(
            [tools / "ptxas", "-v", "--gpu-name=sm_90a", source, "-o", Path(folder) / "kernel.cubin"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    return {
        "shape": repr(shape),
        "spills": sum(int(n) for n in re.findall(r"(\d+) bytes spill", report)),
        "warnings": [line for line in report.splitlines() if "arning" in line or "Performance Loss" in line],
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "shared": kernel.metadata.shared,
        "products": kernel.asm["ptx"].count("wgmma.mma_async"),
    }


def list_shapes() -> list[tuple[Shape, str]]:
    """Plain, everything at once, what lies between and hidden keys; everything and wide tiles for the other width."""
    names = ("has_edges", "is_ragged", "is_packed", "has_lists", "has_dense_rows", "is_hidden")
    plain = dict.fromkeys(names, False)
    everything = dict.fromkeys(names, True) | {"is_hidden": False}
    packed = plain | {"is_ragged": True, "is_packed": True, "has_lists": True}
    shapes = [(128, "bf16", kind) for kind in (plain, plain | {"has_edges": True}, packed, everything)]
    shapes += [(64, "fp16", everything), (128, "bf16", plain | {"is_ragged": True, "is_hidden": True})]
    shapes += [(64, dtype, plain | {"consumers": 3}) for dtype in ("bf16", "fp16")]
    return [
        (Shape(head_dim=width, key_stages=2, value_stages=2, sorted_heads=32, **kind), dtype)
        for width, dtype, kind in shapes
    ]


if __name__ == "__main__":
    json.dump([compile_shape(shape, dtype) for shape, dtype in list_shapes()], sys.stdout)
