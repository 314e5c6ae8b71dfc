"""Records, a real fast tokenizer trained on the spot, and a corpus of them, all small."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from elastic_attention.tasks import load_corpora
from elastic_attention.training.data.corpus import Corpus
from elastic_attention.training.data.encoding import Encoder
from elastic_attention.training.data.sources import open_source

TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if quiet %}(quiet){% endif %}{% endif %}"
)


@functools.cache
def make_tokenizer(template=TEMPLATE):
    """Byte-level BPE of 600 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<|user|>", "<|end|>", "<|assistant|>"],  # models made for tests end with token 2
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([load_corpora().prose[0].text[:20_000]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer


def make_row(index=0, *, words=20, category="code", **changes):
    """A record as it stands in a file."""
    row = {
        "context": f"Text {index}. " + " ".join(f"word{(index * 7 + i) % 97}" for i in range(words)),
        "question": f"What is number {index}?",
        "answer": f"It is {index}.",
        "category": category,
        "metadata": {"task": f"{category}_task"},
    }
    return row | changes


def make_rows(count, *, categories=("code", "single_qa", "few_shot")):
    """Rows of many lengths, categories in turn."""
    return [make_row(i, words=5 + (i * 37) % 90, category=categories[i % len(categories)]) for i in range(count)]


def write_rows(path, rows):
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_corpus(folder, rows, *, capacity=512, over_long="error", **settings):
    """A corpus of rows, its file and cache in `folder`."""
    source = open_source(write_rows(folder / "rows.jsonl", rows))
    return Corpus(
        [source], Encoder(make_tokenizer()), capacity=capacity, over_long=over_long, cache=str(folder), **settings
    )
