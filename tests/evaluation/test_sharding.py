import pytest

from elastic_attention import ElasticAttentionError
from elastic_attention.evaluation.plan import Shard
from elastic_attention.evaluation.sharding import choose_shard_device, find_shard, wait_for_others


def test_a_process_alone_does_everything(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_shard(None) == Shard(index=0, count=1) and find_shard("1/4") == Shard(index=1, count=4)
    assert choose_shard_device(None) is None
    wait_for_others()


def test_torchrun_cuts_the_run(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert find_shard(None) == Shard(index=2, count=4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_shard_device(None) == "cuda:1" and choose_shard_device("cpu") == "cpu"
    with pytest.raises(ElasticAttentionError, match="leave --shard out"):
        find_shard("0/4")


def test_every_batch_is_in_one_part():
    parts = [Shard(index=i, count=3) for i in range(3)]
    assert all(sum(part.holds(number) for part in parts) == 1 for number in range(20))
