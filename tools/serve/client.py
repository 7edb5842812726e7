"""Every call of OpenAI's Python client for videos, against `navicache serve`, with the types of what comes back.

    python3 -m venv venv && venv/bin/pip install openai
    cargo build -p navicache && venv/bin/python tools/serve/client.py target/debug/navicache

Exits with 77 where the client is not installed.
"""

import io
import sys
import tempfile
import warnings

from server import Server

try:
    import openai
except ImportError:
    print("skipped: the openai package is not installed")
    sys.exit(77)

warnings.simplefilter("ignore", DeprecationWarning)
SMALL = {"steps": 3, "frames": 5, "seed": 7}
PROMPT = "a red circle bouncing on a navy background"


def check_types(video):
    kinds = {"id": str, "object": str, "created_at": int, "status": str, "model": str, "progress": int, "seconds": str, "size": str}
    for name, kind in kinds.items():
        value = getattr(video, name)
        assert type(value) is kind, f"{name} is {value!r}, expected {kind.__name__}"
    assert video.object == "video" and video.status in ("queued", "in_progress", "completed", "failed")
    optional = {"prompt": str, "completed_at": int, "expires_at": int, "remixed_from_video_id": str}
    for name, kind in optional.items():
        value = getattr(video, name)
        assert value is None or type(value) is kind, f"{name} is {value!r}"
    assert video.navicache["frames"] > 0, "fields of our own come through"


def refused(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, code)
        assert error.request_id, "x-request-id"
        return error
    raise AssertionError(f"expected {kind.__name__}")


def main(program):
    with tempfile.TemporaryDirectory() as data, Server(program, data) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")

        # create, retrieve, poll
        video = client.videos.create(prompt=PROMPT, size="32x32", extra_body=SMALL)
        check_types(video)
        assert video.status == "queued" and video.size == "32x32" and video.navicache["seed"] == 7
        check_types(client.videos.retrieve(video.id))
        done = client.videos.poll(video.id)
        check_types(done)
        assert done.status == "completed" and done.progress == 100 and type(done.completed_at) is int
        polled = client.videos.create_and_poll(prompt=PROMPT, model="demo", seconds="0.5", size="32x32", extra_body={"steps": 2})
        assert polled.status == "completed" and float(polled.seconds) > 0
        sora = client.videos.create(prompt=PROMPT, model="sora-2", size="32x32", extra_body=SMALL)
        assert sora.model == "demo" and "sora-2" in sora.navicache["warnings"][0]

        # download_content
        content = client.videos.download_content(video.id).read()
        assert content[4:8] == b"ftyp" and len(content) == done.navicache["bytes"]
        assert client.videos.download_content(video.id, variant="thumbnail").read()[:4] == b"RIFF"
        assert client.videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8"
        raw = client.videos.with_raw_response.download_content(video.id, extra_headers={"Range": "bytes=0-0"})
        assert raw.status_code == 206 and len(raw.content) == 1

        # remix, list, delete
        remix = client.videos.remix(video.id, prompt="a blue star spinning on a cream background")
        check_types(remix)
        assert remix.remixed_from_video_id == video.id and remix.navicache["seed"] == 7
        for _ in range(7):
            client.videos.create(prompt=PROMPT, size="32x32", extra_body=SMALL)
        first = client.videos.list(limit=3)
        assert len(first.data) == 3 and first.has_more is True and first.last_id == first.data[-1].id
        everything = [video.id for video in client.videos.list(limit=3)]
        assert len(everything) == 11 == len(set(everything)), everything
        assert everything == sorted(everything, reverse=True)
        upwards = [video.id for video in client.videos.list(limit=2, order="asc")]
        assert upwards == everything[::-1]
        deleted = client.videos.delete(remix.id)
        assert (deleted.id, deleted.object, deleted.deleted) == (remix.id, "video.deleted", True)

        # a picture: bytes, a file, and a tuple; the built-in model takes none, and says so
        picture = png()
        for given in (picture, io.BytesIO(picture), ("a.png", picture, "image/png")):
            error = refused(
                openai.BadRequestError, "invalid_value",
                lambda: client.videos.create(prompt=PROMPT, input_reference=given, extra_body=SMALL),
            )
            assert error.param == "input_reference", error
        refused(
            openai.BadRequestError, "bad_image",
            lambda: client.videos.create(prompt=PROMPT, input_reference=b"<html>", extra_body=SMALL),
        )

        # errors
        refused(openai.NotFoundError, "video_not_found", lambda: client.videos.retrieve("video_nothing"))
        refused(openai.NotFoundError, "video_not_found", lambda: client.videos.delete(remix.id))
        refused(openai.BadRequestError, "invalid_value", lambda: client.videos.create(prompt=PROMPT, size="33x33"))  # type: ignore
        refused(openai.BadRequestError, "model_not_found", lambda: client.videos.create(prompt=PROMPT, model="no"))
        refused(openai.NotFoundError, "not_supported", lambda: client.post("/videos/edits", cast_to=object, body={}))
        models = client.models.list().data
        assert [model.id for model in models] == ["demo"] and type(models[0].created) is int
        assert client.models.retrieve("demo").id == "demo"
        for job in client.videos.list(limit=100):
            client.videos.delete(job.id)
        assert client.videos.list().data == []
        retries(client, server)
        server.stop()
    print(f"openai {openai.__version__}: every call passed")


def retries(client, server):
    """The answer of a create is lost: the client tries again by itself, and one video is made."""
    import socket
    import threading

    proxy = socket.create_server(("127.0.0.1", 0))
    losses = [0]

    def pass_on():
        while True:
            inner, _ = proxy.accept()
            outer = socket.create_connection(("127.0.0.1", server.port))
            threading.Thread(target=one, args=(inner, outer), daemon=True).start()

    def one(inner, outer):
        request = b""
        while b"\r\n\r\n" not in request:
            request += inner.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        while len(body) < length:
            body += inner.recv(65536)
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:"))
        outer.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        answer = b""
        while chunk := outer.recv(65536):
            answer += chunk
        if losses[0] > 0:
            losses[0] -= 1  # the answer is lost, after the job was taken
        else:
            inner.sendall(answer)
        inner.close()

    threading.Thread(target=pass_on, daemon=True).start()
    through = openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.getsockname()[1]}/v1", api_key="none")
    for number, lost in enumerate([0, 1, 2]):
        losses[0] = lost
        through.videos.create(prompt=f"{PROMPT} {number}", size="32x32", extra_body=SMALL)
    assert len(list(client.videos.list(limit=100))) == 3, "each call makes one video, whatever was lost"


def png():
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x40\x80\xc0" * 8 for _ in range(8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "target/debug/navicache")
