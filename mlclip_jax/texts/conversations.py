"""Conversations in which a language model writes training texts: what it is told, and what it answers.

Source: TaI-Adapter (arXiv 2312.04160), sections 3.2, 4.3.1 and 6, whose instructions these are.
"""

import contextlib
import queue
import random
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

from mlclip_jax.errors import InputError
from mlclip_jax.progress import note
from mlclip_jax.wording import counted

INSTRUCTIONS = {
    1: "please briefly caption an image that contains {}.",
    2: "please organize the words {} into a sentence to describe an image.",
}
ANOTHER = "Go ahead and add a caption to this image that is different from what you described before"
SHORTER = "It's too long, please make it shorter."
MAX_SHORTER = 2  # times that one text is asked to be shorter
MAX_WAIT = 60  # seconds before an answer is asked for again; a server may say more

Messages = list[dict[str, str]]  # of a conversation: {"role": "user" or "assistant", "content": text}
Ask = Callable[[Messages], str]  # the model's answer to the last of them; raises `Unanswered`, or InputError


class Unanswered(Exception):
    """A language model gave no answer, and may give one when it is asked again.

    Args:
      reason: in a few words.
      detail: what the server says of it.
      wait: seconds after which it wants to be asked again, if it says so.
    """

    def __init__(self, reason: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.wait = reason, wait


class Combination(NamedTuple):
    """Labels that one conversation is about.

    Attributes:
      number: among all combinations.
      labels: names, in the order in which the model is told them.
      size: how many texts there are to be.
      known: those that there are, by their turn in the conversation.
    """

    number: int
    labels: tuple[str, ...]
    size: int
    known: Mapping[int, str]


class Answer(NamedTuple):
    """A text that a model wrote.

    Attributes:
      combination: that it is of.
      turn: of the conversation, from 0.
      text: without what stood around it.
      rejected: why it is no training text, in words; empty, if it is one.
    """

    combination: Combination
    turn: int
    text: str
    rejected: str = ""


def instruct(instruction: int | str, labels: Sequence[str]) -> str:
    """The first message of a conversation.

    The paper does not say how several labels fill its `{}`. Here they are plain names between commas, which
    reads in "the words dog, umbrella" as well as in "contains dog, umbrella"; underscores are blanks.

    Args:
      instruction: 1 or 2, as the paper numbers them; or a text of one's own, with a `{}`.
      labels: one name or more.
    """
    text = instruction if isinstance(instruction, str) else INSTRUCTIONS[instruction]
    return text.format(", ".join(label.replace("_", " ") for label in labels))


THOUGHTS = re.compile(r"\A.*</think>|<think>.*", re.DOTALL)
# "Caption:", "**Caption 2:**", "Sure, here is a caption for your image:".
LEAD_IN = re.compile(r"[^:]{0,60}\b(caption|sentence|description|title)\b[^:]{0,40}:(?!\w)", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


def clean(answer: str) -> str:
    """A caption without what chat models put around it.

    Thoughts between <think> and </think> go. Of what remains, the first paragraph stays that is not empty and
    does not announce another by a colon, on one line. Of that, a beginning such as "Caption:", Markdown's
    asterisks, and quotation marks around the whole go.
    """
    answer = THOUGHTS.sub("", answer.encode(errors="ignore").decode())  # lone surrogates are no text
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", answer)]
    text = next((part for part in paragraphs if part and not part.rstrip("*_ ").endswith(":")), "")
    before = None
    while text != before:
        before, text = text, text.strip("*_# ")
        if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
            text = text[1:-1]
        if lead_in := LEAD_IN.match(text):
            text = text[lead_in.end() :]
    return text


def converse(
    ask: Ask,
    combinations: Sequence[Combination],
    *,
    instruction: int | str = 1,
    max_words: int = 50,
    attempts: int = 3,
    is_about: Callable[[str, Sequence[str]], bool] | None = None,
    concurrency: int = 8,
    retries: int = 6,
    retry_seconds: float = 1.0,
) -> Generator[Answer]:
    """Yields what a model writes, several conversations at once, in the order in which it answers.

    Once this is closed, the model is asked nothing more.

    Args:
      ask: gives the model's answer to a conversation, see `language_model.py`; called by several threads.
      combinations: a conversation for each; texts that are known are told, and not asked for again.
      instruction: see `instruct`.
      max_words: of a text; the model is asked to make a longer one shorter.
      attempts: how many answers in a row may be rejected; then the conversation ends with what it has.
      is_about: `is_about(text, labels)`, whether a text names any of its labels, or else is rejected; None:
        none is rejected for that.
      concurrency: how many conversations at once.
      retries: how many times an answer that did not come is asked for again.
      retry_seconds: before the first of them; twice as long before each further one, unless the server says.

    Raises:
      InputError: the model cannot be asked, or no answer came; what had come by then is yielded before.
    """
    ahead, answers, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for combination in combinations:
        ahead.put(combination)

    def ask_patiently(messages):
        failure, wait = None, 0.0
        for retry in range(retries + 1):
            if stop.wait(wait):
                raise Unanswered("stopped")
            if failure:
                note(f"{failure.reason}; asking again", once=True)
            try:
                return ask(messages)
            except Unanswered as error:
                failure, wait = error, error.wait
                if wait is None:
                    wait = min(retry_seconds * 2**retry, MAX_WAIT) * random.uniform(0.5, 1)
        raise InputError(
            f"no answer in {counted(retries + 1, 'try', 'tries')}: {failure}; what is finished is kept, and "
            "the same command resumes"
        )

    def work():
        with contextlib.suppress(queue.Empty):
            while not stop.is_set():
                combination = ahead.get_nowait()
                for answer in _conversation(
                    ask_patiently, combination, instruction, max_words, attempts, is_about
                ):
                    answers.put(answer)

    def work_and_say_how_it_ended():
        try:
            work()
            answers.put(None)
        except BaseException as error:
            answers.put(error)

    # Daemons: what still waits for an answer when all ends early keeps nobody waiting.
    workers = [
        threading.Thread(target=work_and_say_how_it_ended, daemon=True) for _ in combinations[:concurrency]
    ]
    failure = None
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running and (failure is None or not answers.empty()):
            answer = answers.get()
            if isinstance(answer, Answer):
                yield answer
            else:
                running -= 1
                failure = failure or answer
                if failure:
                    stop.set()
    finally:
        stop.set()
    if failure:
        raise failure


def _conversation(ask, combination, instruction, max_words, attempts, is_about):
    """Yields the answers of one conversation."""
    texts = dict(combination.known)
    for turn in range(combination.size):
        if turn in texts:
            continue
        messages = [_said("user", instruct(instruction, combination.labels))]
        for known in sorted(texts):
            messages += [_said("assistant", texts[known]), _said("user", ANOTHER)]
        for _ in range(attempts):
            text = _short_text(ask, messages, max_words)
            rejected = ""
            if not text:
                rejected = "empty"
            elif len(text.split()) > max_words:
                rejected = "too long"
            elif text in texts.values():
                rejected = "repeats an earlier text"
            elif is_about is not None and not is_about(text, combination.labels):
                rejected = "names none of its labels"
            yield Answer(combination, turn, text, rejected)
            if not rejected:
                texts[turn] = text
                break
        else:
            return


def _short_text(ask, messages, max_words):
    """An answer; one that is too long is made shorter by the model, which may need several tries."""
    messages = list(messages)
    for _ in range(MAX_SHORTER):
        text = clean(ask(messages))
        if len(text.split()) <= max_words:
            return text
        messages += [_said("assistant", text), _said("user", SHORTER)]
    return clean(ask(messages))


def _said(role, content):
    return {"role": role, "content": content}
