"""LongBench, LongBench-E and LongBench-v2 from the official files, and the almanac, a suite of their shape.

`catalog` says what the tasks are, `metrics` how they are scored, `record_suite` how records become samples.
"""
