"""Image files as upright 8-bit RGB, whatever is in them; what cannot be read says why."""

import contextlib
import functools
import importlib
import io
import os
import stat
import struct
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mlclip_jax.errors import InputError

with contextlib.suppress(ImportError):  # HEIC, where its plug-in is installed
    importlib.import_module("pillow_heif").register_heif_opener()

# Formats that Pillow knows by name, and opens only with programs or plug-ins that are not here.
STUBS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
PNG, TEXT_CHUNKS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of files that can be decoded, in small letters, as ".jpg"."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in STUBS)


class UnreadableImage(InputError):
    """An image that cannot be used; the message is the reason, and does not name it."""


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Raises:
      UnreadableImage: it is missing, empty, no file, or may not be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a pipe would wait forever
            kind = "a directory" if Path(path).is_dir() else "not a regular file"
            raise UnreadableImage(f"{kind} in place of an image")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UnreadableImage((getattr(error, "strerror", None) or str(error)).lower()) from error
    if not data:
        raise UnreadableImage("an empty file")
    return data


def decode_image(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes a file's bytes to an upright 8-bit RGB `PIL.Image`, see `upright_rgb`; a film's first frame.

    libjpeg-turbo decodes plain JPEG files, to the same pixels as Pillow; Pillow the rest, and those that are
    not quite in order.

    Args:
      data: bytes.
      at_least: pixels that the shorter side must have; a JPEG is decoded at the smallest scale, in eighths,
        that gives as many. None: at full scale.

    Raises:
      UnreadableImage: these bytes are no image, or a damaged one, or one of over 179 million pixels.
    """
    try:
        return _decode(data, at_least)
    except UnreadableImage as error:
        readable = _without_texts(data)
        if readable is None:
            raise
        with contextlib.suppress(UnreadableImage):
            return _decode(readable, at_least)
        raise error


def read_image(path: str | os.PathLike, at_least: int | None = None) -> Image.Image:
    """Decodes a file to an upright 8-bit RGB `PIL.Image`, see `decode_image`.

    Raises:
      InputError: the file cannot be read as an image; it is named.
    """
    try:
        return decode_image(read_file(path), at_least)
    except UnreadableImage as error:
        raise InputError(f"cannot read image {printable(path)}: {error}; repair or remove it") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A `PIL.Image` of any mode as an upright one in 8-bit RGB.

    Turned by its EXIF orientation. 16-bit grey is scaled by 255 / 65535 (Pillow itself would clip it); CMYK
    and palettes are converted as Pillow does it; transparency is dropped, and what lies below it shows.

    Raises:
      ValueError: its pixels are floating-point numbers, whose range nothing tells.
    """
    with contextlib.suppress(
        struct.error, SyntaxError
    ):  # a damaged EXIF block turns nothing, and loses nothing
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # to RGB at once, Pillow warns about a palette's transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def printable(name: str | bytes | os.PathLike) -> str:
    r"""A file's name as text that every terminal and file takes: bytes that are no UTF-8 as `\xe9`."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which no file can be called
        return str(name).encode("utf-8", "backslashreplace").decode()


def _decode(data, at_least):
    try:
        with Image.open(io.BytesIO(data)) as image:
            decoded = _decode_jpeg(data, image, at_least)
            if decoded is None:
                image.load()
                decoded = image
            return upright_rgb(decoded)
    except UnidentifiedImageError as error:
        raise UnreadableImage("no image format is recognised") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"a decompression bomb: {error}") from error
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise UnreadableImage(f"{error or type(error).__name__}") from error


def _without_texts(data):
    """A PNG without its comments, whose damage is none of the picture's; None of other files."""
    if not data.startswith(PNG):
        return None
    kept, place = [PNG], len(PNG)
    while place + 8 <= len(data):  # length, kind, content, checksum
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in TEXT_CHUNKS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept) if len(kept) > 1 else None


def _decode_jpeg(data, image, at_least):
    """A plain JPEG as libjpeg-turbo decodes it; None of anything else, and where it finds fault."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=at_least or 0, min_width=at_least or 0)
    except ValueError:
        return None
    decoded = Image.fromarray(pixels)
    decoded.info = image.info  # with its EXIF block
    return decoded
