from made_records import make_record

from elastic_attention.viz.training_tables import render_training, render_training_hours

CELL = {"load": "mixed", "tokens": 65_536, "gpus": 1, "sequence": 1, "way": "ours", "memory": "attention"}
CELL |= {"whole_layers": 0, "fast_gradients": False}


def test_throughput_of_each_cell():
    row = CELL | {"is_compiled": False, "tokens_per_second_per_gpu": 7000.4, "peak_bytes": 90 * 2**30}
    row |= {"share_of_peak": 0.451, "share_of_matmul": 0.56, "share_of_peak_with_recomputation": 0.6}
    fast = row | {"is_compiled": True, "fast_gradients": True, "whole_layers": 10, "layers": 36}
    whole = fast | {"whole_layers": 36, "gpus": 2}
    reference = row | {"way": "reference", "memory": "layers", "gpus": 2, "load": "single"}
    rows = [reference, whole, fast, row]
    table = render_training(make_record("benchmarks/training_throughput.py", {"rows": rows})).splitlines()
    assert table[2].startswith("| ours, unfused | samples of ⅛ to 1 × 64K | all but attention | 1 | 1 | 7,000 |")
    assert "90.0 GiB | 45% | 56% | 60% | –" in table[2]
    assert table[3].startswith(
        "| ours, fast gradients | samples of ⅛ to 1 × 64K | all but attention, 26 of 36 layers | 1 |"
    )
    assert table[4].startswith("| ours, fast gradients | samples of ⅛ to 1 × 64K | nothing | 2 |")
    assert table[5].startswith("| two attentions, keys repeated | one sample × 64K | all | 2 |")


def test_hours_beside_the_paper():
    hours = CELL | {
        "is_compiled": True,
        "packs_per_step": 24,
        "gpu_hours": 20.04,
        "hours_on_8_gpus_at_this_rate": 2.505,
    }
    more = hours | {"packs_per_step": 48, "gpu_hours": 40.08, "hours_on_8_gpus_at_this_rate": 5.01}
    paper = {"gpu": "A800", "gpus": 8, "hours": 12.0}
    record = make_record("benchmarks/training_throughput.py", {"hours": [hours, more], "paper": paper})
    table = render_training_hours(record).splitlines()
    assert table[2] == "| ours | all but attention | 1 | 1 | 20.0 | 2.5 | 40.1 | 5.0 |"
    assert table[3].startswith("| the paper, A800 |") and "| 96.0 | 12.0 |" in table[3]
