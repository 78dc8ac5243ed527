"""Sets of colour photographs that the published models were trained on, and that nothing here
reads."""

from score_sde.data.info import DatasetInfo


def _photographs(name: str, image_size: int, train: int, test: int) -> DatasetInfo:
    splits = {"train": train, "test": test}
    return DatasetInfo(name, (image_size, image_size, 3), 256, 0, splits)


# Sizes are those of the published models' images: LSUN's images have no common size, CelebA's have
# another. LSUN has only a validation set to test on, CelebA-HQ and FFHQ have none.
INFOS = (
    _photographs("celeba", 64, 162_770, 19_962),
    _photographs("lsun_bedroom", 256, 3_033_042, 300),
    _photographs("lsun_church", 256, 126_227, 300),
    _photographs("celebahq", 1024, 30_000, 0),
    _photographs("ffhq", 1024, 70_000, 0),
)
