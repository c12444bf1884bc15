"""Language models to ask: any server that speaks as OpenAI's does, or one in this process by transformers."""

import contextlib
import importlib.util
import os
import re
import threading
from collections.abc import Generator
from http import HTTPStatus
from typing import Any

from mlclip_jax.errors import InputError
from mlclip_jax.texts.conversations import Ask, Messages, Unanswered

LONGEST_WAIT = 600  # seconds; a server that wants to be left alone for longer ends the command
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)  # and 5xx


@contextlib.contextmanager
def served_model(
    model: str,
    address: str,
    *,
    temperature: float = 0.7,
    max_tokens: int = 100,
    timeout_seconds: float = 60.0,
) -> Generator[Ask]:
    """Yields what asks a server: OpenAI's, or one of vLLM, llama.cpp, Ollama and others that speak like it.

    The client's own repetitions are off, for `conversations.converse` repeats: at times that can be set, what
    was answered with nonsense too, and not where nobody listens.

    Args:
      model: its name there.
      address: up to `/v1`, such as "http://localhost:8000/v1". The environment's OPENAI_API_KEY is the key;
        without it "none" is, for servers that need none.
      temperature: of sampling.
      max_tokens: of an answer; 0: as the server has it.
      timeout_seconds: without a sign of the server, after which an answer does not come.

    Yields:
      A function of a conversation that gives the answer, for several threads. It raises `Unanswered` where
      another try may help, and else InputError.
    """
    import openai  # a second

    def ask(messages: Messages) -> str:
        try:
            completion = client.chat.completions.create(
                model=model,
                messages=messages,
                temperature=temperature,
                max_tokens=max_tokens or openai.omit,
            )
            return _content(completion)
        except openai.APITimeoutError as error:
            raise Unanswered(f"{address} did not answer within {timeout_seconds:g} seconds") from error
        except openai.APIConnectionError as error:
            reason = _one_line(error.__cause__)
            if type(error.__cause__).__name__ == "ConnectError":
                raise InputError(
                    f"cannot connect to {address}: {reason}; start the server, or correct the address"
                ) from error
            raise Unanswered(f"{address} broke the connection", reason) from error
        except openai.APIStatusError as error:
            raise _failure_of_status(error, address, model) from error
        except ValueError as error:  # no JSON, or no chat completion
            raise Unanswered(f"{address} sent what is no chat completion", _one_line(error)) from error

    key = os.environ.get("OPENAI_API_KEY") or "none"
    client: Any
    with openai.OpenAI(base_url=address, api_key=key, timeout=timeout_seconds, max_retries=0) as client:
        yield ask


def _content(completion):
    """The text of a chat completion; the client gives whatever came, also what is none."""
    try:
        content = completion.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(completion) from None
    if not isinstance(content, str | None):
        raise ValueError(completion)
    return content or ""


def _failure_of_status(error, address, model):
    """What to raise for a status that is no success."""
    status, said = error.status_code, _one_line(error.message)
    given = error.response.headers.get("retry-after", "")
    wait = float(given) if re.fullmatch(r"\d{1,9}(\.\d+)?", given) else None
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return InputError(f"{address} refuses the key ({said}); set OPENAI_API_KEY to one that it takes")
    if error.code == "insufficient_quota" or not (status in PASSING or status >= 500):
        return InputError(
            f"{address} refuses to answer as {model!r} ({said}); correct the model, or the address, which "
            "often ends in /v1"
        )
    if wait is not None and wait > LONGEST_WAIT:
        return InputError(
            f"{address} wants to be left alone for {wait:,.0f} seconds ({said}); start the same command then"
        )
    return Unanswered(f"{address} answered with HTTP status {status}", said, wait)


def local_model(model: str, *, temperature: float = 0.7, max_tokens: int = 100) -> Ask:
    """What asks a model in this process: one answer at a time, on an accelerator where torch sees one.

    Args:
      model: folder or hub name of a causal language model, whose tokenizer has a chat template.
      temperature: of sampling; 0: the most probable token each time.
      max_tokens: of an answer; 0: as the model has it.

    Returns:
      A function as `served_model` yields.

    Raises:
      InputError: torch is missing, the model cannot be loaded, or it has no chat template.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{model!r} needs torch to run in this process: pip install 'mlclip-jax[language_model]', or "
            "give the address of a server"
        )
    from transformers import pipeline

    try:
        generator: Any = pipeline("text-generation", model=model, dtype="auto")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load {model!r}: {_one_line(error)}; give the folder or hub name of a language model"
        ) from error
    if not generator.tokenizer.chat_template:
        raise InputError(f"{model!r} has no chat template; choose a model that follows instructions")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    length = {"max_new_tokens": max_tokens} if max_tokens else {}
    alone = threading.Lock()

    def ask(messages: Messages) -> str:
        with alone:
            return generator(messages, return_full_text=False, **sampling, **length)[0]["generated_text"]

    return ask


def _one_line(text):
    """What somebody else says of an error, cut to what a line holds."""
    return f"{' '.join(str(text).split()):.200}".rstrip(".")
