"""Prompts that a language model writes, against a real server on this machine."""

import json

import numpy as np
import pytest
from processes import free_address
from texts.chat_server import chat_server
from zero_shot.prompt_tables import random_encoder

from mlclip_jax import InputError
from mlclip_jax.zero_shot.llm_prompts import caption_writer
from mlclip_jax.zero_shot.prompts import NOTHING
from mlclip_jax.zero_shot.top_all import top_all

ASKED = "Please caption an image that contains {}."


def question(messages):
    return messages[0]["content"]


def caption(messages, _=0):
    """What a good model answers."""
    names = question(messages).removeprefix("Please caption an image that contains ").removesuffix(".")
    return f'Caption: "A scene with {names}."'


def writer_at(server, file, **how):
    return caption_writer(file, model="some-model", address=server.address, retry_seconds=0.001, **how)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_set_of_classes_is_asked_for_once_and_kept(tmp_path):
    file = tmp_path / "captions.jsonl"
    with chat_server(caption) as server:
        write = writer_at(server, file)
        prompts = write([["dog"], ["dog", "cat"], ["cat", "dog"]])
        assert prompts == ["A scene with dog.", "A scene with cat, dog.", "A scene with cat, dog."]
        assert sorted(question(asked["messages"]) for asked in server.asked) == [
            ASKED.format("cat, dog"),
            ASKED.format("dog"),
        ]
        asked = server.asked[0]
        assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("some-model", 0.7, 100)
        write([["owl"], ["dog"]])
        assert len(server.asked) == 3
    assert {tuple(line["labels"]): line["text"] for line in lines_of(file)} == {
        ("dog",): "A scene with dog.",
        ("cat", "dog"): "A scene with cat, dog.",
        ("owl",): "A scene with owl.",
    }
    assert {line["model"] for line in lines_of(file)} == {"some-model"}
    # All is in the file by now: neither a server nor a name is needed.
    assert caption_writer(file)([["owl"], ["dog"]]) == ["A scene with owl.", "A scene with dog."]


def test_top_all_reads_its_captions_in_both_stages(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    encode = random_encoder()
    with chat_server(caption) as server:
        write = writer_at(server, tmp_path / "captions.jsonl")
        decided = top_all(images, encode, ["cat", "dog", "hot_dog"], write_class=write, write=write)
        questions = [question(asked["messages"]) for asked in server.asked]
    assert len(questions) == len(set(questions)) <= 7
    assert all(text == NOTHING or text.startswith("A scene with ") for text in encode.asked)
    assert "A scene with cat, dog, hot dog." in encode.asked
    assert np.isfinite(decided.scores).all()


def test_without_a_model_the_error_says_how_to_start_one(tmp_path):
    file = tmp_path / "captions.jsonl"
    with pytest.raises(
        InputError, match=r"lacks the captions of 2 combinations .*`ollama serve`.*/v1$"
    ) as error:
        caption_writer(file)([["dog"], ["cat", "dog"]])
    assert "\n" not in str(error.value)
    assert not file.exists()


def test_where_no_server_is_the_error_says_so(tmp_path):
    write = caption_writer(tmp_path / "a.jsonl", model="some-model", address=f"http://{free_address()}/v1")
    with pytest.raises(
        InputError, match=r"cannot connect to http://.*; start the server, or correct the address"
    ):
        write([["dog"]])


def test_a_killed_run_resumes_and_a_rejected_caption_is_asked_for_again(tmp_path):
    file = tmp_path / "captions.jsonl"
    silent = {ASKED.format("cat")}

    def reply(messages, before):
        return "" if question(messages) in silent else caption(messages, before)

    with chat_server(reply) as server:
        write = writer_at(server, file, concurrency=1)
        with pytest.raises(
            InputError, match=r"wrote no usable caption of 1 combination .* 'cat'; .*rejected.jsonl"
        ):
            write([["dog"], ["cat"], ["owl"]])
        assert [line["labels"] for line in lines_of(file)] == [["dog"], ["owl"]]
        with file.open("a") as cut:
            cut.write('{"text": "A sc')  # what a killed process leaves
        silent.clear()
        server.asked.clear()
        assert write([["dog"], ["cat"], ["owl"], ["bus"]])[1] == "A scene with cat."
        assert [question(asked["messages"]) for asked in server.asked] == [
            ASKED.format("cat"),
            ASKED.format("bus"),
        ]
    assert [line["labels"] for line in lines_of(file)] == [["dog"], ["owl"], ["cat"], ["bus"]]


def test_long_captions_are_made_shorter(tmp_path):
    def reply(messages, _):
        return "A short one." if len(messages) > 1 else "word " * 40

    with chat_server(reply) as server:
        assert writer_at(server, tmp_path / "a.jsonl", max_words=30)([["dog"]]) == ["A short one."]


def test_captions_of_another_model_are_not_taken_for_this_ones(tmp_path):
    file = tmp_path / "captions.jsonl"
    with chat_server(caption) as server:
        writer_at(server, file)([["dog"]])
        with pytest.raises(
            InputError, match=r"holds captions of 'some-model', not of 'other'; choose another file"
        ):
            caption_writer(file, model="other", address=server.address)([["dog"]])


@pytest.mark.parametrize(
    "line", ['{"text": "A dog.", "labels": "dog", "combination": 0}', '{"text": "A dog."}']
)
def test_a_file_of_something_else_is_refused(line, tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is no caption of a combination of classes"):
        caption_writer(file)([["dog"]])
