"""The frames and recipes of the preprocessing golden, made of nothing but their names."""

from dataclasses import dataclass

import numpy as np

from indexer.records import Preprocessing


@dataclass(frozen=True)
class Case:
    name: str
    height: int
    width: int
    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    interpolation: str = "bilinear"

    def frame(self) -> np.ndarray:
        """Stripes, a ramp and noise; `RandomState` promises the same bytes for ever."""
        noise = np.random.RandomState(self.height * 1000 + self.width)
        rows, columns = np.mgrid[: self.height, : self.width]
        stripes = np.stack([rows * 7 % 256, columns * 5 % 256, (rows + columns) * 3 % 256], axis=-1)
        grain = noise.randint(-40, 41, stripes.shape)
        return np.clip(stripes + grain, 0, 255).astype(np.uint8)

    def recipe(self) -> Preprocessing:
        return Preprocessing(
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation,
            rescale_factor=1 / 255,
            mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225),
        )


CASES = (
    Case("landscape", 360, 641, 64, (64, 64)),
    Case("portrait", 97, 53, 64, (64, 64)),
    Case("enlarged", 20, 33, 48, (48, 48)),
    Case("odd_crop", 101, 150, 65, (48, 64)),
    Case("both_sides", 90, 121, (40, 56), None),
    Case("no_crop", 72, 128, 48, None),
    Case("padded", 60, 81, 33, (50, 40)),
    Case("padded_both", 31, 31, 20, (33, 33)),
    Case("same_size", 64, 64, 64, (64, 64)),
    Case("bicubic", 180, 321, 64, (64, 64), "bicubic"),
    Case("bicubic_enlarged", 21, 30, 48, (48, 48), "bicubic"),
    Case("full_size", 108, 192, 112, (112, 112)),
)
