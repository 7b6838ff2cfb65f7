"""Golden files of preprocessing, made with Hugging Face's PIL-based CLIP image processor.

    python tests/golden/make_preprocess.py [data folder]

Writes tests/golden/preprocess/: small synthetic pictures, crops of the album's photographs and `expected.json`. With the
data folder (../shared/data, where the tests look for it) also the expectations of the data sets' pictures: hashes where
the decoder is exact, an 8-bit crop where it is a JPEG's. Made with Python 3.11, transformers 5.23.0,
Pillow 13.0.0 (libjpeg-turbo), NumPy; seed 7.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent / "preprocess"
SIZES = [(97, 61), (61, 97), (300, 200), (33, 47), (64, 64), (5, 90)]
# Of the album (UC Merced, public domain), where they are cut out and how large: odd sides, photographs.
ALBUM = HERE / "../../../models/demo/album"
PHOTOS = [("1591", (7, 9), (131, 97)), ("2091", (31, 50), (151, 203)), ("691", (0, 1), (255, 253))]
# One of its JPEGs whole, at the larger size: the largest file, full of detail.
ALBUM_JPEG = "1395"


def synthetic(width, height, rng):
    """Waves, edges and noise, so that every weight of the filter matters and the cubic overshoots."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (3 + c) + y / (5 - c)) for c in range(3)]
    image = np.stack(waves, -1)
    image[(x // 7 + y // 9) % 3 == 0] = [255, 0, 128]
    noisy = (x + y) % 5 == 0
    image[noisy] = rng.integers(0, 256, (int(noisy.sum()), 3))
    return image.clip(0, 255).astype(np.uint8)


def process(image, size):
    """8-bit crop (size, size, 3) and pixel values (3, size, size)."""
    # CLIP's own way with alpha, which is to drop it; this version of transformers would blend it with white.
    image = image.convert("RGB")
    kind = dict(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    u8 = CLIPImageProcessorPil(**kind, do_rescale=False, do_normalize=False)(image)["pixel_values"][0]
    f32 = CLIPImageProcessorPil(**kind)(image)["pixel_values"][0]
    assert u8.dtype == np.uint8 and f32.dtype == np.float32, (u8.dtype, f32.dtype)
    return np.ascontiguousarray(np.moveaxis(u8, 0, -1)), np.ascontiguousarray(f32)


def sha(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def case(name, image, size):
    u8, f32 = process(image, size)
    return {"file": name, "size": size, "crop_sha256": sha(u8), "values_sha256": sha(f32.astype("<f4"))}


def main():
    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    made = []
    for width, height in SIZES:
        image = Image.fromarray(synthetic(width, height, rng))
        name = f"{width}x{height}.png"
        # A palette keeps noise small on disk and exercises its expansion.
        image = image.quantize(32, dither=Image.Dither.NONE) if width >= 300 else image
        image.save(HERE / name, optimize=True)
        made += [case(name, Image.open(HERE / name), size) for size in (64, 224)]
    # Modes that convert("RGB") must flatten: alpha is dropped, grey repeated, 16 bits cut to the high byte.
    grey = synthetic(40, 30, rng)[..., 0]
    alpha = rng.integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(grey).save(HERE / "grey.png")
    Image.fromarray(np.stack([grey, alpha], -1)).save(HERE / "grey-alpha.png")
    Image.fromarray(np.concatenate([synthetic(40, 30, rng), alpha[..., None]], -1)).save(HERE / "alpha.png")
    Image.fromarray(synthetic(40, 30, rng)).save(HERE / "lossless.webp", lossless=True)
    for name in ["grey.png", "grey-alpha.png", "alpha.png", "lossless.webp"]:
        made.append(case(name, Image.open(HERE / name), 64))
    expected = {"synthetic": made, "photos": []}
    for stem, (x, y), (width, height) in PHOTOS:
        name = f"photo-{width}x{height}.png"
        Image.open(ALBUM / f"{stem}.jpg").crop((x, y, x + width, y + height)).save(HERE / name, optimize=True)
        expected["photos"] += [case(name, Image.open(HERE / name), size) for size in (128, 224)]
    if len(sys.argv) > 1:
        data = Path(sys.argv[1])
        expected["exact"] = [
            case(f"sydney/images/{i}.tif", Image.open(data / f"sydney/images/{i}.tif"), 224) for i in range(1, 10)
        ]
        # A JPEG's decoders may differ in the last bit, so the crop itself is kept.
        photo = HERE / "photo-97x61.jpg"  # UCM is public domain; odd sides and halved chroma are what decoders differ on
        Image.open(data / "ucm/images/700.jpg").crop((20, 30, 117, 91)).save(photo, quality=90, subsampling="4:2:0")
        expected["jpeg"] = []
        paths = [(photo, "", 64), (ALBUM / f"{ALBUM_JPEG}.jpg", "album/", 224)]
        paths += [(data / f"ucm/images/{i}.jpg", "ucm/images/", 64) for i in (1, 700, 1500, 2100)]
        for path, folder, size in paths:
            u8, _ = process(Image.open(path), size)
            name = f"{folder.partition('/')[0]}-{path.stem}-crop{size}.png".lstrip("-")
            Image.fromarray(u8).save(HERE / name, optimize=True)
            expected["jpeg"].append({"file": folder + path.name, "size": size, "crop": name})
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
