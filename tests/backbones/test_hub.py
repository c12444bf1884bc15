"""Checkpoints by hub name, from a hub on this machine: what is asked of it, and what its refusals become."""

import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import outputs_of, start
from tiny_models import write_case

from mlclip_jax import InputError, load_backbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The part of the hub's interface that a download uses, over one folder per repository."""

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.served = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":  # api/models/OWNER/NAME/(revision|tree)/REVISION
            folder = self._folder(parts[2:4], parts[5])
            if folder:
                self._answer(json.dumps(self._listing(parts, sorted(folder.iterdir()))).encode())
            return
        folder = self._folder(parts[:2], parts[3])  # OWNER/NAME/resolve/REVISION/FILE
        if folder:
            if self.command == "GET":
                self.server.served.append(parts[4])
            self._answer((folder / parts[4]).read_bytes())

    def _listing(self, parts, files):
        if parts[4] == "tree":
            return [
                {
                    "type": "file",
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": sha256(file.read_bytes()).hexdigest()[:40],
                }
                for file in files
            ]
        siblings = [{"rfilename": file.name} for file in files]
        return {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}

    do_HEAD = do_GET

    def _folder(self, owner_and_name, revision):
        folder = self.server.repositories.get("/".join(owner_and_name))
        known = revision in ("main", COMMIT)
        if folder is None or not known:
            code = "RepoNotFound" if folder is None else "RevisionNotFound"
            self._answer(b"{}", 404, {"X-Error-Code": code})
            return None
        return folder

    def _answer(self, content, status=200, headers=()):
        self.send_response(status)
        headers = {
            "Content-Length": str(len(content)),
            "ETag": f'"{sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            **dict(headers),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("hub")
    both = write_case(tmp_path / "both", "open_clip_vit", shards=2)
    write_case(both, "clip_quick_gelu")
    pickled = write_case(tmp_path / "pickled", "clip_gelu")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    resnet = write_case(tmp_path / "resnet", "open_clip_resnet")
    for folder in (both, resnet):
        (folder / "pytorch_model.bin").write_bytes(b"a pickle, never to be fetched")
        (folder / "open_clip_pytorch_model.bin").write_bytes(b"another")
        (folder / "modeling_custom.py").write_text("raise SystemExit('code from the hub')")
    server = Hub(
        {
            "laion/both": both,
            "someone/pickled": pickled,
            "timm/tiny_clip.openai": resnet,
            "timm/resnet50_clip.openai": resnet,
            "someone/shards": write_case(tmp_path / "shards", "clip_gelu", shards=3),
        }
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the cache of what was downloaded lies."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def downloaded(hub, folder):
    """What `mlclip embed` said of a repository that holds two layouts, and what it asked the hub for."""
    return embed(hub.url, "laion/both", folder), hub.served.copy()


def embed(hub_url, name, folder, cache="cache", revision="main", code=0):
    """What `mlclip embed` says of a hub, with a cache of its own, and this exit code."""
    variables = {"HF_ENDPOINT": hub_url, "HF_HOME": str(folder / cache), "HF_HUB_OFFLINE": "0"}
    (folder / "names.txt").write_text("dog\n")
    flags = [f"--backbone={name}", f"--revision={revision}", f"--texts={folder / 'names.txt'}"]
    return outputs_of(
        [start(["embed", *flags, f"--output={folder / 'out.npz'}"], variables=variables)], code
    )[0]


def refusal(*given, **how):
    """The line that says why, of a command that ended as it should where the user has to mend something."""
    said = embed(*given, code=2, **how)
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def test_only_what_is_needed_is_downloaded_and_no_pickle(hub, downloaded, tmp_path):
    said, served = downloaded
    assert "laion/both: CLIP (ViT 2 x 32" in said
    assert [name for name in served if not name.endswith(".json")] == ["model.safetensors"]
    hub.served.clear()
    said = embed(hub.url, "timm/tiny_clip.openai", tmp_path)
    assert "CLIP (ResNet of 2+1+1+1 blocks, 8 wide; text 2 x 24; quick_gelu)" in said
    assert [name for name in hub.served if not name.endswith(".json")] == ["open_clip_model.safetensors"]
    hub.served.clear()
    embed(hub.url, "someone/shards", tmp_path)
    weights = sorted(name for name in hub.served if not name.endswith(".json"))
    assert weights == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_what_the_hub_refuses_is_said_in_a_line(hub, tmp_path):
    line = refusal(hub.url, "someone/nothing", tmp_path)
    assert "error: backbone 'someone/nothing' is no folder here" in line
    assert "the hub has no such repository" in line
    line = refusal(hub.url, "laion/both", tmp_path, revision="v9")
    assert "error: laion/both has no revision 'v9' on the hub; give a commit, branch or tag" in line
    line = refusal(hub.url, "someone/pickled", tmp_path)
    assert "someone/pickled lacks model.safetensors at this revision, and a pickle is never read" in line
    assert "--revision=refs/pr/N" in line
    assert "pytorch_model.bin" not in hub.served


@pytest.mark.usefixtures("downloaded")
def test_without_a_network_only_the_cache_is_left(folder):
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    embed(nowhere, "laion/both", folder)
    line = refusal(nowhere, "laion/both", folder, cache="empty")
    assert "the hub cannot be reached, and the cache does not hold it" in line


def test_names_of_open_clip_lead_to_their_repositories(hub, folder):
    assert "timm/resnet50_clip.openai: CLIP (ResNet of " in embed(hub.url, "RN50/openai", folder)
    with pytest.raises(
        InputError, match=r"RN50-quickgelu/laion400m_e32 has no weights 'laion400m_e32'; it has openai"
    ):
        load_backbone("RN50-quickgelu/laion400m_e32")
