"""Image files of every kind that folders of photographs hold: what each is, and what becomes of it."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 48
RED, GREEN = (200, 40, 30), (30, 180, 60)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode="RGB", size=(SIDE, SIDE)):
    """The left half red, the right half green, so that turns and mirrors show."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, size[0], size[1]))
    return image if mode == "RGB" else image.convert(mode)


def exif_turned():
    exif = Image.Exif()
    exif[0x0112] = 8  # stored turned by a quarter: upright, red is below
    return encoded(picture(), "JPEG", exif=exif, quality=95)


def bomb():
    """A PNG that says it has 40,000 x 40,000 pixels, in a few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated():
    frames = [picture(), Image.new("RGB", (SIDE, SIDE), "blue")]
    return encoded(frames[0].quantize(), "GIF", save_all=True, append_images=frames[1:])


def grey16():
    values = np.full((SIDE, SIDE), 65535 * 3 // 4, np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def with_alpha():
    image = picture("RGBA")
    image.putalpha(0)  # all of it transparent; its colours are there all the same
    return encoded(image, "PNG")


def photograph():
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", quality=90)


def commented(kind, content, checksum=None):
    """A PNG with a chunk of text before its pixels, whose checksum may be wrong."""
    data = encoded(picture(), "PNG")
    place = 8 + 12 + 13  # behind the header
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return data[:place] + chunk + data[place:]


# What can be read: the file's name, its bytes, and the colours of its left and right edge (None: any).
READABLE = {
    "plain.jpg": (encoded(picture(), "JPEG", quality=95), (RED, GREEN)),
    "png_named.jpg": (encoded(picture(), "PNG"), (RED, GREEN)),
    "jpeg_named.png": (encoded(picture(), "JPEG", quality=95), (RED, GREEN)),
    "still.gif": (encoded(picture().quantize(), "GIF"), (RED, GREEN)),
    "animated.gif": (animated(), (RED, GREEN)),
    "cmyk.jpg": (encoded(picture("CMYK"), "JPEG", quality=95), (RED, GREEN)),
    "grey.jpg": (encoded(picture("L"), "JPEG"), None),
    "grey16.png": (grey16(), ((191,) * 3, (191,) * 3)),
    "palette.png": (encoded(picture().quantize(), "PNG"), (RED, GREEN)),
    "alpha.png": (with_alpha(), (RED, GREEN)),
    "black_and_white.png": (encoded(picture("1"), "PNG"), None),
    "exif.jpg": (exif_turned(), None),
    "one_pixel.png": (encoded(Image.new("RGB", (1, 1), RED), "PNG"), (RED, RED)),
    "wide.png": (encoded(picture(size=(6000, 2)), "PNG"), (None, None)),
    "tall.jpg": (encoded(picture(size=(1, 9000)), "JPEG"), None),
    "lossless.webp": (encoded(picture(), "WEBP", lossless=True), (RED, GREEN)),
    "checksum.png": (commented(b"tEXt", b"Comment\0a dog", checksum=0), (RED, GREEN)),
    "huge_text.png": (commented(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 22))), (RED, GREEN)),
    "tail.jpg": (encoded(picture(), "JPEG", quality=95) + b"more bytes after the image", (RED, GREEN)),
}
# What cannot: the file's name, its bytes (None: no file, or none of its own), and words of the reason.
UNREADABLE = {
    "truncated.jpg": (photograph()[: len(photograph()) // 2], "truncated"),
    "truncated.png": (encoded(picture(), "PNG")[:60], "."),
    "header_only.jpg": (photograph()[:20], "."),
    "empty.jpg": (b"", "an empty file"),
    "text.jpg": (b"this is no image", "no image format is recognised"),
    "bomb.png": (bomb(), "a decompression bomb"),
    "floats.tiff": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "no fixed range"),
    "directory.jpg": (None, "a directory in place of an image"),
    "pipe.jpg": (None, "not a regular file"),
    "dangling.jpg": (None, "no such file"),
    "loop.jpg": (None, "too many levels of symbolic links"),
}


def write_all(folder):
    """Writes every file of both tables, and one whose name is no UTF-8; returns that name as bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in (READABLE | UNREADABLE).items():
        if data is not None:
            (folder / name).write_bytes(data)
    (folder / "directory.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    name = b"caf\xe9.jpg"
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123 - no Path has bytes
        file.write(READABLE["plain.jpg"][0])
    return name
