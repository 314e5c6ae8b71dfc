"""Two records in one: the score of each method beside the speed-ups that its share of sparse heads gives."""

import pytest
import quality_speed
from quality_speed import interpolate, pick_times

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.viz import save_frontier
from elastic_attention.viz.renderers import render_quality_speed

SHAPE = {"model": "big", "tokens": 4096, "kernel": "elastic", "pair": "fa-ssa"}
# Seconds 4, 3, 1 of a dense kernel that takes 4.
PREFILL = [SHAPE | {"batch": 1, "msr": m, "speedup": s} for m, s in ((0.0, 1.0), (0.25, 4 / 3), (0.75, 4.0))]
DECODE = [SHAPE | {"batch": 2, "msr": m, "speedup": s} for m, s in ((0.0, 1.0), (1.0, 2.0))]
OTHERS = [PREFILL[1] | other for other in ({"pair": "fa-xa"}, {"kernel": "fa3"}, {"batch": 2}, {"tokens": 8})]


def score(label, msr, decode="sparse"):
    name = label.partition("@")[0].removesuffix("-full")
    row = {"method": name, "label": label, "decode": decode, "target": None, "n": 8, "msr": msr, "score": 0.5}
    return row | {"esr_prefill": msr / 2, "relative_score": 0.9, "relative_low": 0.8, "relative_high": 1.0}


def write(path, metrics, data):
    facts = {"config": {}, "model": "small", "data": data, "device": "1 GPU", "seed": 1, "n": 8, "seconds": 1.0}
    write_record(path, build_record("study", metrics=metrics, bytes=None, **facts))
    return str(path)


def test_seconds_between_two_that_were_timed_lie_on_a_line():
    times = pick_times(PREFILL + OTHERS, model="big", tokens=4096, batch=1)
    assert times == [(0.0, 1.0), (0.25, 4 / 3), (0.75, 4.0)]
    assert [interpolate(times, msr) for msr in (0.0, 0.125, 0.5, 0.75)] == pytest.approx([1, 4 / 3.5, 2, 4])
    with pytest.raises(ElasticAttentionError, match="MSR 0.80 lies outside"):
        interpolate(times, 0.8)
    with pytest.raises(ElasticAttentionError, match="No two MSRs of big were timed at 8,192 tokens and batch 1"):
        pick_times(PREFILL, model="big", tokens=8192, batch=1)


def test_the_record_its_table_and_its_figure(tmp_path):
    rows = [score("dense", 0.0), score("routed", 0.5), score("routed-full", 0.5, "full"), score("xattention", 1.0)]
    quality = write(tmp_path / "quality.json", {"rows": rows}, {"suite": "mixture", "split": "heldout"})
    speed = write(tmp_path / "speed.json", {"rows": PREFILL + OTHERS, "decode": DECODE}, "random tokens")
    record = tmp_path / "joined.json"
    names = ["--quality", quality, "--speed", speed, "--record", str(record), "--model", "big", "--tokens", "4096"]
    quality_speed.main([*names, "--decode-batch", "2"])
    found = read_record(record)
    speeds = {row["label"]: (row["prefill_speedup"], row["decode_speedup"]) for row in found["metrics"]["rows"]}
    assert speeds == {"dense": (1, 1), "routed": (2, pytest.approx(4 / 3)), "routed-full": (2, 1)}
    assert found["metrics"]["left_out"] == ["xattention"]  # its heads read other keys than those that were timed
    assert "| routed | 8 | 0.50 | 0.25 | 0.900 \\[0.800, 1.000\\] | 2.00 | 1.33 |" in render_quality_speed(found)
    save_frontier(found, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "Quality against speed" in drawn and "speed-up of decoding" in drawn and "MSR" not in drawn
