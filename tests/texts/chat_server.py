"""A server on this machine that speaks as OpenAI's does, with answers and failures as a test wants them."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlclip_jax.texts.conversations import ANOTHER, INSTRUCTIONS

LABELS = re.compile("|".join(re.escape(text).replace(r"\{\}", "(.+)") for text in INSTRUCTIONS.values()))


def labels_in(messages):
    """The names that the first message of a conversation asks for, as they stand there."""
    return next(filter(None, LABELS.fullmatch(messages[0]["content"]).groups()))


def caption(messages, _=0):
    """What a good model answers: another caption each time, that names all."""
    number = sum(message["content"] == ANOTHER for message in messages)
    return f"Picture number {number} shows {labels_in(messages)}."


def status(number, *, code=None, **headers):
    """A failure, with an error as OpenAI's server sends it."""
    content = json.dumps({"error": {"message": f"on purpose: {number}", "code": code}}).encode()
    return lambda handler: handler.respond(number, content, headers)


def body(content, kind="application/json"):
    """An answer of any content."""
    return lambda handler: handler.respond(200, content.encode(), {"content-type": kind})


def malformed(handler):
    handler.respond(200, b'{"choices": [{"message": {"content": "a d')


def cut(handler):
    """Half of an answer, and the connection ends."""
    content = completion("a dog")
    handler.respond(200, content[: len(content) // 2], {"content-length": str(len(content))})
    handler.close_connection = True


def hang(handler):
    """Nothing, until the test is over."""
    handler.server.over.wait(60)
    handler.close_connection = True


def completion(text):
    message = {"role": "assistant", "content": text}
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages, server = asked["messages"], self.server
        with server.lock:
            server.times.append(time.monotonic())
            server.asked.append(asked | {"path": self.path, "key": self.headers["authorization"]})
            key = json.dumps(messages)
            before = server.counts[key]
            server.counts[key] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        if server.seconds:
            time.sleep(server.seconds)
        answer = server.reply(messages, before)
        with server.lock:
            server.at_once -= 1
        with contextlib.suppress(ConnectionError):  # who asked was killed, or has given up
            if callable(answer):
                answer(self)
            else:
                self.respond(200, completion(answer))

    def respond(self, code, content, headers=None):
        self.send_response(code)
        named = {"content-type": "application/json", "content-length": str(len(content))} | (headers or {})
        for name, value in named.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):  # a client that was killed
        pass


@contextlib.contextmanager
def chat_server(reply=caption, *, seconds=0.0):
    """Serves while the block runs.

    Args:
      reply: `reply(messages, before)` gives a text, or one of the failures above, which is called with the
        handler; `before` counts how often the same messages came.
      seconds: that an answer takes.

    Yields:
      The server: its `address`; what was `asked`, in order, and at which `times`; `most_at_once`, requests at
        the same time.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.reply, server.seconds = reply, seconds
    server.asked, server.times, server.counts = [], [], Counter()
    server.lock, server.over = threading.Lock(), threading.Event()
    server.at_once = server.most_at_once = 0
    server.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
