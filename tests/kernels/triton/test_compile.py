"""What the shipped kernels become on an H100 or H200: no spills, tensor cores, and they fit the shared memory."""

SHARED_MEMORY = 227 * 1024


def test_shipped_kernels_compile_for_hopper_without_spills(compile_for_hopper):
    found = compile_for_hopper("compile_attention.py")
    gradients = "_weigh", "sweep_queries", "sweep_keys", "sweep_block_queries", "sweep_block_keys"
    assert {kernel["name"] for kernel in found} == {"_prefill", "_blend", "_mix", *gradients}
    for kernel in found:
        print(*kernel.values(), sep="\t")  # pytest -s
        # float32 runs on the ordinary units, there for correctness: its blended kernel may spill.
        assert kernel["stack"] == kernel["local"] == 0 or "float32" in kernel["case"], kernel
        assert kernel["registers"] <= 255 and kernel["shared"] <= SHARED_MEMORY, kernel
        is_tensor = "float32" not in kernel["case"] and kernel["name"] not in ("_weigh", "_mix")
        is_tensor &= not (kernel["name"] == "sweep_block_queries" and kernel["case"].startswith("D 256"))  # tiles of 32
        assert (kernel["wgmma"] > 0) == is_tensor, kernel
