from made_records import make_record

from elastic_attention.viz.policy_tables import render_policies


def test_ways_to_decide():
    row = {"way": "first_chunk 1024", "n": 420, "msr": 0.7992, "agreement": 0.9176, "score": 0.6886}
    row |= {"agreement_low": 0.9138, "agreement_high": 0.9218}
    row |= {"difference": -0.0049, "difference_low": -0.0313, "difference_high": 0.0212}
    dense = row | {"way": "dense", "agreement": None}
    table = render_policies(make_record("benchmarks/policy_agreement.py", {"rows": [row, dense]})).splitlines()
    assert table[2] == (
        r"| first\_chunk 1024 | 420 | 0.799 | 0.918 \[0.914, 0.922\] | 0.689 | -0.005 \[-0.031, 0.021\] |"
    )
    assert table[3].startswith("| dense | 420 | 0.799 | – |")
