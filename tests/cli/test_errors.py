"""Wrong usage and wrong input: exit code 2, one line on stderr that names the value, no traceback."""

import shutil

import pytest

from elastic_attention.cli import app as cli_app


def assert_one_line(result, *words):
    code, _, err = result
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_missing_file(call, tiny):
    assert_one_line(call("run", "--prompt-file", "nowhere.txt", "--question", "why", *tiny), "nowhere.txt")


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a\0b", "zero bytes")],
)
def test_file_without_text(call, tiny, tmp_path, content, word):
    (tmp_path / "file").write_bytes(content)
    assert_one_line(call("run", "--prompt-file", "file", "--question", "why", *tiny), "file", word)
    assert_one_line(call("inspect", "--prompt-file", "file", *tiny), "file", word)


def test_folder_instead_of_file(call, tiny, tmp_path):
    assert_one_line(call("inspect", "--prompt-file", tmp_path, *tiny), str(tmp_path))


def test_empty_question(call, tiny, document):
    assert_one_line(call("run", "--prompt-file", document, "--question", " ", *tiny), "question")


def test_prompt_past_the_limit(call, tiny, tmp_path):
    (tmp_path / "long.txt").write_text("x" * 3000, encoding="utf-8")
    assert_one_line(call("run", "--prompt-file", "long.txt", "--question", "why", *tiny), "3,0", "2,048")
    assert_one_line(call("inspect", "--prompt-file", "long.txt", *tiny), "3,000", "2,048")


def test_answer_past_the_limit(call, tiny, document):
    arguments = ("run", "--prompt-file", document, "--question", "why", "--max-new-tokens", "2000")
    assert_one_line(call(*arguments, *tiny), "2,000", "2,048")


def test_unknown_model(call, document, tmp_path):
    arguments = ("run", "--prompt-file", document, "--question", "why", "--device", "cpu", "--model", tmp_path / "no")
    assert_one_line(call(*arguments), "There is no model folder", str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("model.safetensors", b"half a header", "SafetensorError"),
        ("config.json", b'{"model_type": "llama", "num_hidden_layers": "three"}', "num_hidden_layers"),
        ("tokenizer.json", b'{"a": 1}', "KeyError"),
    ],
)
def test_a_damaged_model_folder(call, tiny, document, tmp_path, file, content, word):
    folder = shutil.copytree(tiny[1], tmp_path / "damaged")
    (folder / file).write_bytes(content)
    assert_one_line(call("inspect", "--prompt-file", document, *tiny, "--model", folder), str(folder), word)


def test_unknown_routers(call, tiny, document, tmp_path):
    arguments = [*tiny, "--routers", str(tmp_path / "no")]
    assert_one_line(call("run", "--prompt-file", document, "--question", "why", *arguments), str(tmp_path / "no"))


def test_no_routers_ship_for_the_model(call, tiny, document):
    assert_one_line(call("inspect", "--prompt-file", document, *tiny[:2], *tiny[4:]), "No routers ship")


@pytest.mark.parametrize("device", ["potato", "cpu:x", "meta"])
def test_unknown_device(call, device):
    assert_one_line(call("bench", "--device", device), f"device '{device}' cannot be used: ", "--device cpu")


def test_an_unknown_kind_of_device_is_no_list_of_all_kinds(call):
    assert_one_line(call("bench", "--device", "gpu"), "PyTorch knows no such kind. Use --device cpu.")


def test_unknown_backend(call, tiny, document):
    assert_one_line(call("bench", "--backend", "magic"), "magic")
    assert_one_line(call("run", "--prompt-file", document, "--question", "why", "--backend", "magic", *tiny), "magic")


def test_missing_recipe(call):
    assert_one_line(call("train", "nowhere.toml"), "nowhere.toml")


def test_broken_recipe(call, tmp_path):
    (tmp_path / "broken.toml").write_text("steps = 10\nspeed = 3\n", encoding="utf-8")
    assert_one_line(call("train", "broken.toml"), "speed")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Nothing to make"),
        (["--html", "x.html"], "--html needs a record"),
        (["--curves", "x.svg"], "--log"),
        (["--tables", "nowhere.md"], "nowhere.md"),
        (["nowhere.json", "--html", "x.html"], "nowhere.json"),
    ],
)
def test_report_without_what_it_needs(call, arguments, word):
    assert_one_line(call("report", *arguments), word)


def test_record_into_a_folder(call, tiny, document, tmp_path):
    assert_one_line(call("inspect", "--prompt-file", document, "--json", tmp_path, *tiny), str(tmp_path))


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_folder_for_a_file_is_refused_before_the_work(call, tmp_path, option):
    arguments = ["demo", "--device", "potato", option, tmp_path]
    assert_one_line(call(*arguments), f"{option} {tmp_path}", "folder")


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("afile/x.json", "afile is a file; name a folder"),
        ("afile/deep/x.json", "afile is a file; name a folder"),
        ("/proc/nope/x.json", "cannot be written"),
        ("/dev/null", "is no regular file; name a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(call, tmp_path, option, place, words):
    (tmp_path / "afile").write_text("kept")
    assert_one_line(call("demo", "--device", "potato", option, place), f"{option} {place}", words)
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize("command", [["eval", "--model", "nowhere"], ["train", "nowhere.toml"]])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("afile", "--output afile is a file; name a folder"),
        ("afile/run", "--output afile/run: afile is a file; name a folder"),
        ("/proc/nope", "--output /proc/nope cannot be written"),
    ],
)
def test_an_output_that_is_no_folder_is_refused_before_the_work(call, tmp_path, command, place, words):
    (tmp_path / "afile").write_text("kept")
    assert_one_line(call(*command, "--output", place), words)
    code, _, err = call(*command, "--output", tmp_path / "new" / "run")
    assert code == 2 and "nowhere" in err and not (tmp_path / "new").exists()


def test_a_picture_of_another_kind_is_refused_before_the_work(call, document):
    arguments = ["inspect", "--prompt-file", document, "--device", "potato", "--picture", "heads.jpg"]
    assert_one_line(call(*arguments), "heads.jpg", ".png or .svg")


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(call, document, tmp_path):
    (tmp_path / "heads.svg").mkdir()
    arguments = ["inspect", "--prompt-file", document, "--device", "potato", "--picture", "heads.svg"]
    assert_one_line(call(*arguments), "--picture heads.svg is a folder")


@pytest.mark.parametrize("budget", ["nan", "inf"])
def test_a_budget_that_is_no_number(call, tiny, document, budget):
    assert_one_line(call("inspect", "--prompt-file", document, "--budget", budget, *tiny), f"--budget {budget}")


def test_wrong_usage(call):
    for arguments in (["fly"], ["demo", "--limit", "0"], ["run"], ["bench", "--what", "weather"]):
        code, _, err = call(*arguments)
        assert code == 2 and "Traceback" not in err


def test_interrupt(call, monkeypatch):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_app, "app", stop)
    assert call("demo") == (130, "", "interrupted\n")
