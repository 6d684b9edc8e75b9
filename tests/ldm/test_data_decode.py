"""Every kind of image file against pixels that are known beforehand."""

import io
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.data import decode
from ldm.data.decode import BadImageError, MemoryBudget, crop_square, decode_rgb, fit, unscaled_bits
from ldm.data.formats import AVIF, HEIC, JXL, OptionalFormat, jxl_size

GENERATOR = np.random.Generator(np.random.PCG64(0))
RGB = GENERATOR.integers(0, 256, (6, 4, 3), dtype=np.uint8)  # taller than wide
GREY = GENERATOR.integers(0, 256, (6, 4), dtype=np.uint8)
ALPHA = np.array([0, 255, 128, 51], dtype=np.uint8)[None].repeat(6, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode_rgb(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(float) / 255
    return rgb * share + 255 * (1 - share)


def rgba(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate([rgb, ALPHA[..., None]], -1), "RGBA")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_is_unchanged(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_over_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.abs(pixels(encoded(rgba(RGB), kind, **options)) - over_white(RGB, ALPHA)).max() <= 1


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.fromarray(np.stack([GREY, ALPHA], -1), "LA")
    assert np.abs(pixels(encoded(image)) - over_white(GREY[..., None], ALPHA)).max() <= 1


def test_grey_and_one_bit() -> None:
    assert np.array_equal(pixels(encoded(Image.fromarray(GREY))), GREY[..., None].repeat(3, -1))
    bits = GREY > 127
    assert np.array_equal(pixels(encoded(Image.fromarray(bits))), (bits * 255)[..., None].repeat(3, -1))


def test_palette_with_and_without_transparency() -> None:
    index = GENERATOR.integers(0, 3, (6, 4), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 90]], dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    assert np.array_equal(pixels(encoded(image)), colours[index])
    assert np.array_equal(pixels(encoded(image, "GIF")), colours[index])
    clear = colours.copy()
    clear[1] = 255
    assert np.array_equal(pixels(encoded(image, transparency=1)), clear[index])
    half = np.array([255, 128, 0], dtype=np.uint8)  # one alpha a colour
    expected = over_white(colours[index], half[index])
    assert np.abs(pixels(encoded(image, transparency=half.tobytes())) - expected).max() <= 1


def test_transparent_colour_of_rgb_and_grey() -> None:
    rgb = RGB.copy()
    rgb[2, 1] = (10, 20, 30)
    found = pixels(encoded(Image.fromarray(rgb), transparency=(10, 20, 30)))
    assert found[2, 1].tolist() == [255, 255, 255]
    assert np.array_equal(np.delete(found.reshape(-1, 3), 9, 0), np.delete(rgb.reshape(-1, 3), 9, 0))
    grey = np.full((3, 3), 7, np.uint8)
    grey[0, 0] = 99
    assert pixels(encoded(Image.fromarray(grey), transparency=99))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 257, 300], [32768, 65535, 40000, 12345]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(int)[..., None].repeat(3, -1)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), kind)), expected)


def test_pixels_without_a_known_range_are_bad() -> None:
    for values in (np.ones((2, 2), np.float32), np.full((2, 2), 10**6, np.int32)):
        with pytest.raises(BadImageError, match="no known range"):
            decode_rgb(encoded(Image.fromarray(values), "TIFF"))


def test_cmyk() -> None:
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[:, :4, 0] = 255  # cyan on the left
    ink[:, 4:, 3] = 255  # black on the right
    found = pixels(encoded(Image.fromarray(ink, "CMYK"), "TIFF"))
    assert np.array_equal(found[:, :4], np.broadcast_to([0, 255, 255], (8, 4, 3)))
    assert np.array_equal(found[:, 4:], np.zeros((8, 4, 3)))
    jpeg = pixels(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
    assert np.abs(jpeg[:, 0] - [0, 255, 255]).max() <= 12  # not inverted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = (255, 255, 255)  # top left
    upright[8:, 24:] = (120, 120, 120)  # bottom right
    stored = {  # EXIF 2.3, table 5: where row 0 and column 0 of the file lie in the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    found = pixels(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= 8


def test_unreadable_exif_is_no_orientation() -> None:
    content = encoded(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(pixels(content), RGB)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(content), np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_truncated_files_are_bad(kind: str) -> None:
    noise = GENERATOR.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    decode_rgb(content)
    for share in (0.1, 0.6, 0.9):
        with pytest.raises(BadImageError):
            decode_rgb(content[: int(len(content) * share)])


def test_what_is_no_image_is_bad() -> None:
    for content, reason in (
        (b"", "empty"),
        (b"hello" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ):
        with pytest.raises(BadImageError, match=reason):
            decode_rgb(content)


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (60, 50)))
    monkeypatch.setattr(decode, "MAX_PIXELS", 2999)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match="60 x 50 pixels, expected 1 to 2999"):
        decode_rgb(content)


def test_a_bomb_in_text_or_claimed_size_is_bad() -> None:
    text = PngInfo()
    text.add_text("comment", "0" * 80_000_000, zip=True)
    with pytest.raises(BadImageError):
        decode_rgb(encoded(Image.fromarray(RGB), pnginfo=text))
    content = bytearray(encoded(Image.new("RGB", (2, 2)), "BMP"))
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(BadImageError, match="pixels"):
        decode_rgb(bytes(content))


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # the finest stripes there are: grey, once the image is an eighth of the size
    small = fit(Image.fromarray(stripes), 32)
    assert small.shape == (32, 32, 3)
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() <= 1
    assert np.abs(small.astype(int) - 127).max() <= 6  # the filter is cut off at the border


@pytest.mark.parametrize("shape", [(50, 81), (97, 40), (64, 64), (9, 200)])
def test_shorter_side_becomes_the_size_and_the_square_is_cut_out(shape: tuple[int, int]) -> None:
    image = Image.fromarray(GENERATOR.integers(0, 256, (*shape, 3), dtype=np.uint8))
    whole = fit(image, 37)
    assert min(whole.shape[:2]) == 37 and abs(max(whole.shape[:2]) - 37 * max(shape) / min(shape)) <= 0.5
    slack = max(whole.shape[:2]) - 37
    axis = int(np.argmax(whole.shape[:2]))
    for place, start in ((None, slack // 2), ((0.0, 0.0), 0), ((0.999, 0.999), slack), ((0.5, 0.5), (slack + 1) // 2)):
        assert np.array_equal(crop_square(whole, place), np.take(whole, range(start, start + 37), axis))


def test_a_long_thin_image_is_bad_before_it_is_enlarged() -> None:
    with pytest.raises(BadImageError, match="1000000 x 1 pixels: too long"):
        fit(Image.new("RGB", (1_000_000, 1)), 256)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = GENERATOR.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(crop_square(fit(Image.fromarray(image), 32)), image)


def test_transparent_pixels_take_the_background_that_is_given() -> None:
    for image in (rgba(RGB), Image.fromarray(np.stack([GREY, ALPHA], -1), "LA")):
        black = np.asarray(decode_rgb(encoded(image), "black")).astype(int)
        share = ALPHA[..., None] / 255
        assert np.abs(black - share * np.asarray(image.convert("RGB"))).max() <= 1


def test_a_large_image_is_flattened_in_bands_to_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Image.fromarray(GENERATOR.integers(0, 3, (37, 29), dtype=np.uint8), "P")
    index.putpalette(GENERATOR.integers(0, 256, 9, dtype=np.uint8).tobytes())
    deep = Image.fromarray(GENERATOR.integers(0, 65536, (37, 29), dtype=np.uint16))
    colours = Image.fromarray(GENERATOR.integers(0, 256, (37, 29, 4), dtype=np.uint8), "RGBA")
    contents = [encoded(index, transparency=1), encoded(index, "GIF"), encoded(deep), encoded(colours)]
    whole = [pixels(content) for content in contents]
    monkeypatch.setattr(decode, "_BAND", 100)
    assert all(np.array_equal(pixels(content), before) for content, before in zip(contents, whole, strict=True))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("colour", [False, True])
def test_few_bits_in_a_file_of_sixteen_are_reported(bits: int, colour: bool) -> None:
    values = np.array([[0, 2**bits - 1], [5, 300]], dtype=np.uint16)
    content = encoded(Image.fromarray(values))
    if colour:  # Pillow cannot write them
        content = png_of_sixteen_bits(values[..., None].repeat(3, -1))
    assert unscaled_bits(decode_rgb(content)) == (bits if bits < 16 else 0)
    assert unscaled_bits(decode_rgb(encoded(Image.fromarray(RGB)))) == 0


def png_of_sixteen_bits(rgb: np.ndarray) -> bytes:
    import struct
    import zlib

    height, width = rgb.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SIGNATURES = {
    AVIF: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    HEIC: b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1",
    JXL: b"\xff\x0a\x00\x01",
}


@pytest.mark.parametrize("kind", SIGNATURES, ids=lambda kind: kind.extra)
def test_a_format_whose_plug_in_is_missing_is_named_with_the_extra(
    kind: OptionalFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptionalFormat, "is_available", lambda self: False)
    with pytest.raises(BadImageError, match=rf"install its decoder by pip install 'guided-latents\[{kind.extra}\]'"):
        decode_rgb(SIGNATURES[kind])
    monkeypatch.undo()
    with pytest.raises(BadImageError):  # and whatever is installed, half a file is a bad one
        decode_rgb(SIGNATURES[kind])


@pytest.mark.skipif(not AVIF.is_available(), reason="needs the extra avif")
def test_avif_is_read() -> None:
    image = Image.fromarray(np.full((20, 30, 3), (200, 40, 90), np.uint8))
    assert np.abs(pixels(encoded(image, "AVIF", quality=95)) - np.asarray(image)).max() <= 4


@pytest.mark.skipif(not HEIC.is_available(), reason="needs the extra heic")
def test_heic_is_read() -> None:
    image = Image.fromarray(np.full((64, 96, 3), (200, 40, 90), np.uint8))
    assert np.abs(pixels(encoded(image, "HEIF", quality=95)) - np.asarray(image)).max() <= 4


@pytest.mark.skipif(not JXL.is_available(), reason="needs the extra jxl")
@pytest.mark.parametrize("size", [(8, 8), (48, 64), (300, 200), (33, 77)])
def test_jpeg_xl_is_read_and_its_size_before(size: tuple[int, int]) -> None:
    image = Image.fromarray(GENERATOR.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    for options in ({}, {"use_container": True}):
        content = encoded(image, "JXL", lossless=True, **options)
        assert jxl_size(content) == size and np.array_equal(pixels(content), np.asarray(image))


def test_the_size_of_a_jpeg_xl_is_in_its_header() -> None:
    """The first bytes of two files of libjxl: 64 x 48 by the ratio 4 : 3, and 513 x 1000 in a container."""
    assert jxl_size(bytes.fromhex("ff0acb06")) == (64, 48)
    fields = [(0, 1), (1, 2), (999, 13), (0, 3), (1, 2), (512, 13)]  # (value, bits): not small, 1000, no ratio, 513
    value = position = 0
    for number, count in fields:
        value, position = value | number << position, position + count
    codestream = b"\xff\x0a" + value.to_bytes(8, "little")
    container = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x12jxlc" + codestream
    assert jxl_size(codestream) == jxl_size(container) == (513, 1000)
    assert jxl_size(container[:12]) == (0, 0)


def test_threads_share_a_budget_and_one_alone_always_passes() -> None:
    budget, lock = MemoryBudget(100), threading.Lock()
    used = most = 0

    def work(size: int) -> None:
        nonlocal used, most
        with budget.reserved(size):
            with lock:
                used += size
                most = max(most, used)
            threading.Event().wait(0.002)
            with lock:
                used -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in [30, 60, 20, 90, 40, 100, 10] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 90 <= most <= 100 and used == 0
    with budget.reserved(1000):
        pass


HOSTILE = {  # the largest that are not refused, or refused by their headers: a few bytes to some hundred kilobytes
    "rgb": ("RGB", (9459, 9459), {"format": "PNG"}),
    "rgba": ("RGBA", (7600, 7600), {"format": "PNG"}),
    "grey and alpha, too large": ("LA", (9459, 9459), {"format": "PNG"}),
    "webp": ("RGB", (5400, 5400), {"format": "WEBP", "lossless": True, "method": 0}),
    "webp, too large": ("RGB", (9459, 9459), {"format": "WEBP", "lossless": True, "method": 0}),
    "progressive": ("RGB", (6500, 7000), {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "sixteen bits": ("I;16", (8000, 8000), {"format": "PNG"}),
}
MEASURE = """
import sys
import torch
from ldm.data.decode import BadImageError, decode_rgb, fit

def peak():  # getrusage begins with the peak of the process that forked
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

before = peak()
try:
    fit(decode_rgb(open(sys.argv[1], "rb").read()), 32)
    print("decoded", end=" ")
except BadImageError as error:
    print("refused", end=" ")
print((peak() - before) / 1024, before / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_memory_of_the_largest_images(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    mode, size, options = HOSTILE[name]
    path = tmp_path / "file"
    path.write_bytes(encoded(Image.new(mode, size), options.pop("format"), **options))
    found = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    outcome, grown, before = found.stdout.split()
    assert outcome == ("refused" if "too large" in name else "decoded"), found.stdout
    assert float(grown) < (500 if outcome == "decoded" else 20), f"{grown} MiB"
    assert float(grown) + float(before) < 1024, found.stdout
