"""Makes verify/goldens/pictures.safetensors: images encoded, decoded, scaled and laid over a colour by Pillow; and
verify/goldens/frames.safetensors: files of several frames, of old formats, of 16 bits, and turned ones.

Needs Pillow 12.2 or older (13 scales in another order of passes), numpy and safetensors. Run from the repository root.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save

TARGET = Path("verify/goldens/pictures.safetensors")
FRAMES = Path("verify/goldens/frames.safetensors")
ORIENTATION = 0x0112
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Width and height before and after: up, down, mixed, one side kept, to one pixel, by more than the filter is wide.
SIZES = [
    ((23, 17), (9, 31)),
    ((23, 17), (23, 8)),
    ((23, 17), (40, 17)),
    ((40, 30), (28, 28)),
    ((61, 7), (3, 5)),
    ((5, 64), (1, 1)),
    ((1, 1), (4, 3)),
]


def smooth(random, width, height):
    """An image that lossy formats keep well: broad waves of colour, a disc of opacity."""
    y, x = np.mgrid[0:height, 0:width]
    phases = random.uniform(0, 6, 3)
    colour = [127 + 120 * np.sin(x / 7 + phase) * np.cos(y / 9 + phase) for phase in phases]
    opacity = np.clip(300 - 18 * np.hypot(x - width / 2, y - height / 2), 0, 255)
    return Image.fromarray(np.stack([*colour, opacity], axis=-1).round().astype(np.uint8), "RGBA")


def encoded(picture):
    """Every kind of file that must be readable: name to bytes."""
    rgb = picture.convert("RGB")
    sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    variants = {
        "png_rgba": (picture, "PNG", {}),
        "png_rgb": (rgb, "PNG", {}),
        "png_grey": (picture.convert("L"), "PNG", {}),
        "png_grey_opacity": (picture.convert("LA"), "PNG", {}),
        "png_grey_16": (sixteen, "PNG", {}),
        "png_bilevel": (picture.convert("1"), "PNG", {}),
        "png_palette": (rgb.quantize(16), "PNG", {}),
        "png_palette_opacity": (picture.quantize(16, method=Image.Quantize.FASTOCTREE), "PNG", {}),
        "webp_lossless_rgb": (rgb, "WEBP", {"lossless": True}),
        "webp_lossless_rgba": (picture, "WEBP", {"lossless": True, "exact": True}),
        "webp_lossy_rgb": (rgb, "WEBP", {"quality": 85}),
        "webp_lossy_rgba": (picture, "WEBP", {"quality": 85}),
        "jpeg": (rgb, "JPEG", {"quality": 90, "subsampling": "4:4:4"}),
        "jpeg_subsampled": (rgb, "JPEG", {"quality": 90, "subsampling": "4:2:0"}),
        "jpeg_progressive": (rgb, "JPEG", {"quality": 90, "progressive": True}),
        "jpeg_grey": (picture.convert("L"), "JPEG", {"quality": 90}),
        "jpeg_stored_rgb": (rgb, "JPEG", {"quality": 95, "keep_rgb": True}),
        "jpeg_cmyk": (rgb.convert("CMYK"), "JPEG", {"quality": 95}),
    }
    for name, (image, kind, options) in variants.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        yield name, stream.getvalue()


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wide_png(values):
    """A PNG of 16 bits a channel: grey, RGB, grey with opacity or RGBA."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def bitfields_bmp(values):
    """A BMP of 16 bits a pixel, 5, 6 and 5 of them red, green and blue."""
    height, width = values.shape
    rows = [row.astype("<u2").tobytes() + b"\0" * (-2 * width % 4) for row in values[::-1]]
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, sum(map(len, rows)), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(info) + len(masks)
    return struct.pack("<2sIHHI", b"BM", start + sum(map(len, rows)), 0, 0, start) + info + masks + b"".join(rows)


def runs_bmp(palette, codes, bits):
    """A BMP of run lengths, 6 pixels by 4."""
    colours = np.zeros((1 << bits, 4), np.uint8)
    colours[:, :3] = palette[: 1 << bits]
    info = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, 0, 0)
    start = 14 + len(info) + colours.nbytes
    return struct.pack("<2sIHHI", b"BM", start + len(codes), 0, 0, start) + info + colours.tobytes() + codes


def palette_tiff(random, bits, order):
    """A TIFF of numbers of colours of `bits` bits, 13 pixels by 9, in byte order "<" or ">"."""
    width, height, count = 13, 9, 1 << bits
    numbers = random.integers(0, count, (height, width), dtype=np.uint8)
    spread = np.unpackbits(numbers[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    rows = np.packbits(spread, axis=-1).tobytes()
    colours = random.integers(0, 1 << 16, 3 * count).astype(order + "u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 3)]
    directory = 8 + len(rows) + len(colours)
    tags += [(273, 4, 1, 8), (278, 3, 1, height), (279, 4, 1, len(rows)), (320, 3, 3 * count, 8 + len(rows))]
    file = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, directory) + rows + colours
    file += struct.pack(order + "H", len(tags))
    for tag, kind, values, value in tags:
        file += struct.pack(order + ("HHIHH" if kind == 3 and values == 1 else "HHII"), *(tag, kind, values, value, 0)[: 5 if kind == 3 and values == 1 else 4])
    return file + struct.pack(order + "I", 0)


def framed(random):
    """What is read beside the plain kinds: name to bytes."""
    picture = smooth(random, 13, 9)
    rgb, grey = picture.convert("RGB"), picture.convert("L")
    palette, other = rgb.quantize(16), smooth(random, 13, 9)
    yield "gif", saved(palette, "GIF")
    yield "gif_grey", saved(grey, "GIF")
    yield "gif_interlaced", saved(palette, "GIF", interlace=1)
    yield "gif_transparent", saved(palette, "GIF", transparency=3)
    yield "gif_animated", saved(palette, "GIF", save_all=True, append_images=[other.convert("RGB")], duration=100)
    for name, options in (("gif_small_frame", {}), ("gif_small_transparent_frame", {"transparency": 3})):
        file = bytearray(saved(palette, "GIF", **options))
        file[6:10] = struct.pack("<HH", 17, 12)
        place = file.index(b"\x2c", 13 + 3 * 16)
        file[place + 1 : place + 5] = struct.pack("<HH", 2, 1)
        yield name, bytes(file)
    yield "bmp_bilevel", saved(picture.convert("1"), "BMP")
    yield "bmp_palette", saved(palette, "BMP")
    yield "bmp_grey", saved(grey, "BMP")
    yield "bmp_rgb", saved(rgb, "BMP")
    yield "bmp_32", saved(picture, "BMP")
    yield "bmp_16", bitfields_bmp(random.integers(0, 1 << 16, (9, 13)))
    colours = random.integers(0, 256, (256, 3), dtype=np.uint8)
    codes = bytes([4, 200, 2, 7, 0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 1, 9, 0, 0, 0, 2, 3, 0, 3, 8, 0, 0, 6, 77, 0, 1])
    yield "bmp_runs_8", runs_bmp(colours, codes, 8)
    codes = bytes([5, 0x12, 1, 0x70, 0, 0, 0, 6, 0x12, 0x34, 0x56, 0, 0, 0, 6, 0x77, 0, 0, 3, 0x48, 3, 0x90, 0, 1])
    yield "bmp_runs_4", runs_bmp(colours, codes, 4)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"tiff_{compression}", saved(rgb, "TIFF", compression=compression)
    yield "tiff_rgba", saved(picture, "TIFF")
    yield "tiff_grey", saved(grey, "TIFF")
    yield "tiff_bilevel", saved(picture.convert("1"), "TIFF")
    yield "tiff_cmyk", saved(rgb.convert("CMYK"), "TIFF")
    wide = random.integers(0, 600, (9, 13, 4))
    yield "tiff_grey_16", saved(Image.fromarray(wide[..., 0].astype(np.uint16)), "TIFF")
    yield "tiff_animated", saved(rgb, "TIFF", save_all=True, append_images=[other.convert("RGB")])
    yield "png_animated", saved(picture, "PNG", save_all=True, append_images=[other], duration=100)
    yield "webp_animated", saved(picture, "WEBP", save_all=True, append_images=[other], duration=100, lossless=True, exact=True)
    for channels in (1, 2, 3, 4):
        yield f"png_16_{channels}", wide_png(wide[..., :channels] * (1 if channels == 1 else 100))
    # Lossless where they can be, and of whole blocks where they cannot: turning does not change how they are decoded.
    photo = rgb.resize((24, 16))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"jpeg_turned_{orientation}", saved(photo, "JPEG", exif=exif, quality=95)
        for kind in ("png", "webp", "tiff"):
            if orientation == 6:
                options = {"lossless": True} if kind == "webp" else {}
                yield f"{kind}_turned", saved(rgb, kind.upper(), exif=exif, **options)
    text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    yield "jpeg_turned_xmp", saved(photo, "JPEG", xmp=text, quality=95)
    yield "webp_turned_xmp", saved(rgb, "WEBP", xmp=text, lossless=True)
    plain = saved(rgb, "PNG")
    end = plain.index(b"IDAT") - 4
    international = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    yield "png_turned_xmp", plain[:end] + international + plain[end:]
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    digits = exif.tobytes().hex().encode()
    lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    raw = b"\nexif\n%8d\n%s\n" % (len(digits) // 2, lines)
    packed = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    yield "png_turned_raw_profile", plain[:end] + packed + plain[end:]
    for compression in ("raw", "tiff_lzw", "packbits"):
        yield f"tiff_palette_{compression}", saved(palette, "TIFF", compression=compression)
    for bits in (1, 2, 4, 8):
        for order, name in (("<", "little"), (">", "big")):
            yield f"tiff_palette_{bits}_{name}", palette_tiff(random, bits, order)


def write(target, tensors):
    target.write_bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"pillow": PIL.__version__}))
    print(f"{target}: {target.stat().st_size} bytes")


def write_frames():
    tensors = {}
    for name, data in framed(np.random.default_rng(20250703)):
        tensors[f"file.{name}"] = np.frombuffer(data, np.uint8)
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        tensors[f"pixels.{name}"] = np.asarray(shown.convert("RGBA"))
    write(FRAMES, tensors)


def main():
    major, minor = (int(part) for part in PIL.__version__.split(".")[:2])
    assert (major, minor) <= (12, 2), f"Pillow {PIL.__version__} scales in another order; install 12.2"
    random = np.random.default_rng(20250702)
    tensors = {}
    for name, data in encoded(smooth(random, 37, 26)):
        tensors[f"file.{name}"] = np.frombuffer(data, np.uint8)
        tensors[f"pixels.{name}"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    frames = [smooth(random, 8, 8) for _ in range(2)]
    for kind in ("PNG", "WEBP"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=100)
        tensors[f"animated.{kind.lower()}"] = np.frombuffer(stream.getvalue(), np.uint8)
    for before, after in SIZES:
        for kind, channels in (("opaque", 3), ("translucent", 4)):
            noise = Image.fromarray(random.integers(0, 256, (before[1], before[0], channels), dtype=np.uint8))
            case = f"{kind}.{before[0]}x{before[1]}.{after[0]}x{after[1]}"
            tensors[f"input.{case}"] = np.asarray(noise.convert("RGBA"))
            for name, method in FILTERS.items():
                tensors[f"{name}.{case}"] = np.asarray(noise.resize(after, method).convert("RGBA"))
            if channels == 4 and before == (23, 17):
                over = Image.new("RGB", noise.size, (250, 3, 100))
                over.paste(noise, mask=noise)
                tensors[f"flattened.{case}"] = np.asarray(over.convert("RGBA"))
    write(TARGET, tensors)
    write_frames()


if __name__ == "__main__":
    main()
