"""Conversations with a language model: what it is told, what becomes of its answers, and every failure."""

import contextlib
import json
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import free_address
from texts.chat_server import body, caption, chat_server, cut, hang, malformed, status

from mlclip_jax import InputError
from mlclip_jax.texts.conversations import (
    ANOTHER,
    INSTRUCTIONS,
    SHORTER,
    Answer,
    Combination,
    Unanswered,
    clean,
    converse,
    instruct,
)
from mlclip_jax.texts.language_model import local_model, served_model

DOG = Combination(0, ("dog", "traffic_light"), 2, {})
FIRST = "please briefly caption an image that contains dog, traffic light."
LONG = " ".join(["word"] * 51)


def model_at(server, **settings):
    return served_model("some-model", server.address, **{"timeout_seconds": 5.0, **settings})


def answers_of(server, combinations=(DOG,), *, timeout_seconds=5.0, **how):
    with model_at(server, timeout_seconds=timeout_seconds) as ask:
        return list(converse(ask, combinations, **{"retry_seconds": 0.001, "concurrency": 1, **how}))


def said(asked):
    """The messages of a request, which the user and the model sent in turn."""
    roles = [message["role"] for message in asked["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    return [message["content"] for message in asked["messages"]]


def test_the_instructions_are_those_of_the_paper():
    assert instruct(1, DOG.labels) == FIRST
    assert instruct(2, ["dog"]) == "please organize the words dog into a sentence to describe an image."
    assert ANOTHER == (
        "Go ahead and add a caption to this image that is different from what you described before"
    )
    assert SHORTER == "It's too long, please make it shorter."
    assert set(INSTRUCTIONS) == {1, 2}
    assert instruct("show {}!", DOG.labels) == "show dog, traffic light!"  # one of one's own


def test_a_conversation_asks_for_another_text_of_the_same_labels():
    with chat_server(lambda messages, _: f'"Text {len(messages)}."') as server:
        answers = answers_of(server, instruction=2)
    assert answers == [Answer(DOG, 0, "Text 1."), Answer(DOG, 1, "Text 3.")]
    first = "please organize the words dog, traffic light into a sentence to describe an image."
    assert [said(asked) for asked in server.asked] == [[first], [first, "Text 1.", ANOTHER]]
    asked = server.asked[0]
    assert asked["path"] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("some-model", 0.7, 100)


def test_texts_that_are_known_are_told_and_not_asked_for():
    with chat_server() as server:
        for known, missing in (
            ({0: "A known text."}, [1]),
            ({1: "A known text."}, [0]),
            ({0: "a", 1: "b"}, []),
        ):
            answers = answers_of(server, [DOG._replace(known=known)])
            assert [answer.turn for answer in answers] == missing
    assert [said(asked) for asked in server.asked] == [[FIRST, "A known text.", ANOTHER]] * 2


def test_what_is_too_long_is_made_shorter_by_the_model():
    replies = iter([LONG, LONG, "Short.", "Another."])
    with chat_server(lambda *_: next(replies)) as server:
        answers = answers_of(server)
    assert [answer.text for answer in answers] == ["Short.", "Another."]
    assert [said(asked) for asked in server.asked] == [
        [FIRST],
        [FIRST, LONG, SHORTER],
        [FIRST, LONG, SHORTER, LONG, SHORTER],
        [FIRST, "Short.", ANOTHER],  # as when it is resumed: what was too long is not recorded
    ]


def test_rejected_answers_come_with_the_reason_and_the_model_is_asked_again():
    replies = iter(["", *[LONG] * 3, "A cat.", "A dog.", "", "", "", "A cow.", "never asked for"])
    with chat_server(lambda *_: next(replies)) as server:
        answers = answers_of(server, attempts=4, is_about=lambda text, labels: labels[0] in text.lower())
    unnamed = "names none of its labels"
    assert [answer[1:] for answer in answers] == [
        (0, "", "empty"),
        (0, LONG, "too long"),
        (0, "A cat.", unnamed),
        (0, "A dog.", ""),
        *[(1, "", "empty")] * 3,
        (1, "A cow.", unnamed),
    ]
    with chat_server(lambda *_: "A cat.") as server:
        rejected = [answer.rejected for answer in answers_of(server)]
    assert rejected == ["", *["repeats an earlier text"] * 3]


@pytest.mark.parametrize(
    ("failure", "times"),
    [
        (status(429), 2),
        (status(408), 1),
        (status(409), 1),
        (status(500), 3),
        (status(503), 1),
        (malformed, 1),
        (cut, 2),
        (body("<html>Welcome</html>", "text/html"), 1),
        (body("", "text/plain"), 1),
        (body("null"), 1),
        (body('{"error": {"message": "overloaded"}}'), 1),
        (body('{"choices": []}'), 1),
        (body('{"choices": [{"message": {"content": ["a dog"]}}]}'), 1),
    ],
)
def test_what_passes_is_asked_again(failure, times):
    with chat_server(lambda messages, before: failure if before < times else caption(messages)) as server:
        answers = answers_of(server)
    assert [answer[1:] for answer in answers] == [
        (turn, f"Picture number {turn} shows dog, traffic light.", "") for turn in (0, 1)
    ]
    assert len(server.asked) == 2 * (times + 1)


def test_a_server_that_is_silent_is_asked_again_and_then_given_up_in_one_line():
    with chat_server(lambda messages, before: caption(messages) if before else hang) as server:
        assert len(answers_of(server, timeout_seconds=0.1)) == 2
    with chat_server(lambda *_: hang) as server:
        with pytest.raises(InputError) as raised:
            answers_of(server, timeout_seconds=0.1, retries=2)
        assert len(server.asked) == 3
    assert str(raised.value) == (
        f"no answer in 3 tries: {server.address} did not answer within 0.1 seconds; what is finished is "
        "kept, and the same command resumes"
    )


def test_waits_double_unless_the_server_says_how_long():
    with chat_server(lambda messages, before: status(500) if before < 4 else caption(messages)) as server:
        answers_of(server, [DOG._replace(size=1)], retry_seconds=0.02)
    gaps = [after - before for before, after in zip(server.times, server.times[1:])]
    assert all(gap >= 0.5 * 0.02 * 2**retry for retry, gap in enumerate(gaps))
    assert len(gaps) == 4
    wait = status(429, retry_after="0.2")
    with chat_server(lambda messages, before: wait if before < 1 else caption(messages)) as server:
        answers_of(server, [DOG._replace(size=1)], retry_seconds=1_000.0)
    [gap] = [after - before for before, after in zip(server.times, server.times[1:])]
    assert 0.2 <= gap < 20  # and not half a minute and more


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (status(401), "refuses the key (.*on purpose: 401.*); set OPENAI_API_KEY to one that it takes"),
        (status(403), "refuses the key (.*on purpose: 403.*); set OPENAI_API_KEY to one that it takes"),
        (status(404), "refuses to answer as 'some-model' (.*on purpose: 404.*); correct the model, or the"),
        (status(400), "refuses to answer as 'some-model' (.*on purpose: 400.*); correct the model, or the"),
        (status(429, retry_after="3600"), "wants to be left alone for 3,600 seconds (.*); start the same"),
        (
            status(429, code="insufficient_quota"),
            "refuses to answer as 'some-model' (.*on purpose: 429.*); correct the model, or the",
        ),
    ],
)
def test_what_no_repetition_cures_ends_at_once_in_one_line(failure, message):
    with chat_server(lambda *_: failure) as server, pytest.raises(InputError) as raised:
        answers_of(server, retry_seconds=1_000.0)
    assert len(server.asked) == 1
    pattern = re.escape(f"{server.address} {message}").replace(r"\.\*", ".*")
    assert re.match(pattern, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


def test_where_no_server_is_ends_at_once_in_one_line():
    address = f"http://{free_address()}/v1"
    with (
        served_model("some-model", address) as ask,
        pytest.raises(InputError, match=re.escape(f"cannot connect to {address}: ")) as raised,
    ):
        list(converse(ask, [DOG], retry_seconds=1_000.0))
    assert str(raised.value).endswith("Connection refused; start the server, or correct the address")


def test_the_key_is_the_environments_and_none_is_needed(monkeypatch):
    with chat_server() as server:
        for key, sent in ((None, "none"), ("", "none"), ("sk-1", "sk-1")):
            monkeypatch.delenv("OPENAI_API_KEY", raising=False)
            if key is not None:
                monkeypatch.setenv("OPENAI_API_KEY", key)
            answers_of(server)
            assert server.asked[-1]["key"] == f"Bearer {sent}"
        with model_at(server, max_tokens=0) as ask:
            ask([{"role": "user", "content": FIRST}])
        assert "max_tokens" not in server.asked[-1]


def test_several_conversations_are_held_at_once_and_each_once():
    combinations = [Combination(i, (f"thing {i}",), 3, {}) for i in range(12)]
    with chat_server(seconds=0.02) as server:
        answers = answers_of(server, combinations, concurrency=4)
    assert server.most_at_once == 4
    expected = [(i, turn) for i in range(12) for turn in range(3)]
    assert sorted((answer.combination.number, answer.turn) for answer in answers) == expected
    assert len(server.asked) == 36
    order = [answer.combination.number for answer in answers]
    assert order != sorted(order)  # as they came


def test_what_had_come_with_a_failure_is_given_before_it():
    first, bad, good = (Combination(i, (name,), 1, {}) for i, name in enumerate(["first", "bad", "good"]))
    begin = {name: threading.Event() for name in ("first", "bad", "good")}
    running = threading.active_count()

    def ask(messages):
        name = messages[0]["content"].split()[-1].strip(".")
        begin[name].wait(60)
        if name == "bad":
            raise InputError("on purpose")
        return name

    def wait_until_ended(name, number):
        begin[name].set()
        while threading.active_count() > running + number:
            time.sleep(0.001)

    begin["first"].set()
    answers = converse(ask, [first, bad, good])
    assert next(answers) == Answer(first, 0, "first")
    wait_until_ended("bad", 1)
    wait_until_ended("good", 0)
    assert next(answers) == Answer(good, 0, "good")
    with pytest.raises(InputError, match="on purpose"):
        next(answers)


def test_when_nobody_listens_any_more_the_model_is_left_alone():
    before = threading.active_count()
    combinations = [Combination(i, (f"thing {i}",), 5, {}) for i in range(50)]
    asked = []

    def ask(messages):
        asked.append(messages)
        if len(asked) > 8:
            raise Unanswered("busy", wait=1_000.0)
        return "A thing."

    answers = converse(ask, combinations, concurrency=4)
    next(answers)
    while len(asked) < 12:  # each of the four waits for a thousand seconds
        time.sleep(0.001)
    answers.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before
    assert len(asked) == 12


def test_a_defect_keeps_its_traceback():
    def ask(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(converse(ask, [DOG]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "id"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def any_server():
    with chat_server() as server, model_at(server) as server.ask:
        yield server


@settings(max_examples=150)
@given(json_values, st.sampled_from([None, "choices", "message"]))
def test_any_answer_is_a_text_or_none(any_server, value, below):
    value = {"choices": {"choices": value}, "message": {"choices": [{"message": value}]}}.get(below, value)
    any_server.reply = lambda *_: body(json.dumps(value))
    with contextlib.suppress(Unanswered):
        assert isinstance(any_server.ask([{"role": "user", "content": "x"}]), str)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A dog.", "A dog."),
        ("  A dog\n under an  umbrella. \n", "A dog under an umbrella."),
        ('"A dog."', "A dog."),
        ("“A dog.”", "A dog."),
        ("**A dog.**", "A dog."),
        ("Caption: A dog.", "A dog."),
        ("**Caption:** *A dog.*", "A dog."),
        ('Caption 2: "A dog."', "A dog."),
        ('"Caption: A dog."', "A dog."),
        ("Sure! Here is a caption for your image: 'A dog.'", "A dog."),
        ("Sure, here you go:\n\nA dog.\n\nLet me know if you want another one!", "A dog."),
        ("**Here is it:**\n\nA dog.", "A dog."),
        ("# Description:\n\nA dog.", "A dog."),
        ("A dog.\n \nHashtags: #dog", "A dog."),
        ("<think>\nA caption.\n\nOf a dog.</think>\n\nA dog.", "A dog."),
        ("Of a dog.\n</think>\nA dog.", "A dog."),
        ("<think>It never ends", ""),
        ("A clock shows 12:30.", "A clock shows 12:30."),
        ("A sign with a caption that says 10:30.", "A sign with a caption that says 10:30."),
        ('"Dog" is what the sign says, and "cat"', '"Dog" is what the sign says, and "cat"'),
        ("A man's dog.", "A man's dog."),
        ("A \ud800dog.", "A dog."),
        ("", ""),
        ("\n\n", ""),
        ('""', ""),
        ("Caption:", ""),
    ],
)
def test_an_answer_is_cleaned_of_what_stands_around_the_caption(answer, text):
    assert clean(answer) == text


words = st.lists(st.sampled_from(["a", "dog", "man's", "traffic", "light", "12:30"]), min_size=1).map(
    " ".join
)


@given(
    words,
    st.sampled_from(["", "Caption: ", "Here is a caption:\n\n", "Title: ", "<think>a\n\nb</think>"]),
    st.sampled_from(['""', "“”", "««"[:0], "**"]),
    st.sampled_from(["", "\n\nWhat do you think?", "\n \n"]),
)
def test_whatever_stands_around_it_a_caption_is_found(caption, before, around, after):
    half = len(around) // 2
    assert clean(f"{before}{around[:half]}{caption}{around[half:]}{after}") == caption


@given(st.text())
def test_any_text_becomes_one_line(answer):
    text = clean(answer)
    assert text == " ".join(text.split())
    assert len(text) <= len(answer)
    text.encode()


CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    """A folder with a random Llama, a tokenizer of a few words, and a chat template."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    words = ["<unk>", "<end>", *" ".join([*INSTRUCTIONS.values(), ANOTHER, "dog light"]).split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=1, pad_token_id=1, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_model_in_this_process_holds_conversations(tiny_llama):
    ask = local_model(str(tiny_llama), max_tokens=4)
    answers = list(converse(ask, [DOG, DOG._replace(number=1)], attempts=20))
    texts = [answer for answer in answers if not answer.rejected]
    assert sorted((answer.combination.number, answer.turn) for answer in texts) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert all(1 <= len(answer.text.split()) <= 4 for answer in texts)
    greedy = local_model(str(tiny_llama), temperature=0.0, max_tokens=4)
    message = [{"role": "user", "content": FIRST}]
    assert greedy(message) == greedy(message)


def test_a_model_that_cannot_be_used_in_this_process_is_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match=r"cannot load '/nowhere/x': .*; give the folder or hub name"):
        local_model("/nowhere/x")
    for path in tiny_llama.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="has no chat template; choose a model that follows instructions"):
        local_model(str(tmp_path))
