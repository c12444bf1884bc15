"""What torchvision makes of small images, kept in torchvision_outputs.npz, so that no test needs torchvision.

    python tests/torchvision_outputs.py

makes the file anew, where torchvision is installed. It was made with torchvision 0.29.1 and Pillow 13.0.
"""

from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).with_suffix(".npz")
SIZES = [(16, 12), (9, 22)]  # of the images: width and height
MAGNITUDES = [0, 9, 17, 30]  # of 0 to 30
CROPPED = [(1000, 2), (2, 1000), (1, 1), (1, 7), (500, 300)]
SCALES, RATIOS = (2.0, 3.0), (3 / 4, 4 / 3)  # no crop has more than the image, so all are the fallback


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def key(name, size, magnitude, sign):
    return f"{name} {sign * magnitude} of {'x'.join(map(str, size))}"


def main():
    from torchvision import transforms
    from torchvision.transforms import autoaugment

    outputs = {}
    for width, height in SIZES:
        table = transforms.RandAugment()._augmentation_space(31, (height, width))
        outputs["names"] = list(table)
        outputs["either_sign"] = [signed for _, signed in table.values()]
        for name, (magnitudes, signed) in table.items():
            for magnitude in MAGNITUDES:
                for sign in (1, -1) if signed else (1,):
                    value = sign * float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
                    nearest = transforms.InterpolationMode.NEAREST
                    image = autoaugment._apply_op(
                        noise(width, height), name, value, interpolation=nearest, fill=None
                    )
                    outputs[key(name, (width, height), magnitude, sign)] = np.asarray(image)
    crops = [
        transforms.RandomResizedCrop.get_params(noise(*size), list(SCALES), list(RATIOS)) for size in CROPPED
    ]
    np.savez_compressed(FILE, crops=crops, **outputs)  # each crop its top, left, height and width


if __name__ == "__main__":
    main()
