"""The CNN and the random shifts: sizes of the released code, units, and what a shift does to which rows."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator.encoders import Encoder, EncoderConfig, random_offsets, scaled, shift
from policy_decorator.errors import UserError

PUSH_CHAIR = EncoderConfig(channels=(16, 16, 32, 64), last_kernel=3)


def frames(n: int = 3, k: int = 2, size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    rgb = torch.randint(256, (n, 3 * k, *size), dtype=torch.uint8)
    return {"state": torch.randn(n, 5), "rgb": rgb, "depth": torch.randint(3000, (n, k, *size), dtype=torch.int16)}


@pytest.mark.parametrize(
    ("cfg", "k", "size", "flat"), [(EncoderConfig(), 2, (64, 64), 128 * 4 * 4), (PUSH_CHAIR, 3, (50, 125), 128 * 3 * 7)]
)
def test_sizes_of_the_released_code(cfg: EncoderConfig, k: int, size: tuple[int, int], flat: int) -> None:
    encoder = Encoder(cfg, {"rgb": (3 * k, *size), "depth": (k, *size)}, 5)
    layers = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    channels = [m.weight.shape[:2] for m in layers]
    wide = (4 * k, *cfg.channels, 128)
    assert channels == [*((b, a) for a, b in pairwise(wide)), (256, flat)]
    assert [m.weight.shape[-1] for m in layers[:-1]] == [3] * 4 + [cfg.last_kernel]
    assert all(m.bias is not None and not m.bias.any() for m in layers)
    out = encoder(frames(3, k, size))
    assert out.shape == (3, encoder.size) == (3, 5 + 256)


def test_one_convolution_and_one_linear_layer_are_what_they_say() -> None:
    """Written out for 2 x 2 pictures: channels scaled, convolved, halved, convolved, projected."""
    encoder = Encoder(EncoderConfig((3,), 4, features=6), {"rgb": (3, 2, 2), "depth": (1, 2, 2)}, 5)
    seen = frames(2, 1, (2, 2))
    image = torch.cat([seen["rgb"] / 255, seen["depth"] / 1000], dim=1)
    first, last, linear = (m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    x = first(image).relu().amax(dim=(2, 3), keepdim=True)
    wanted = linear(last(x).relu().flatten(1)).relu()
    torch.testing.assert_close(encoder(seen)[:, 5:], wanted)
    assert torch.equal(encoder(seen)[:, :5], seen["state"])


def test_units() -> None:
    assert scaled("rgb", torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    assert scaled("depth", torch.tensor([0, 1500], dtype=torch.int16)).tolist() == [0, 1.5]


def test_windows_are_encoded_frame_by_frame() -> None:
    from policy_decorator.envs.images import together

    encoder = Encoder(EncoderConfig((4,), 4, features=6), {"rgb": (3, 8, 8), "depth": (1, 8, 8)}, 5)
    flat = frames(6, 1, (8, 8))
    window: Any = together({name: x.unflatten(0, (2, 3)) for name, x in flat.items()}, ndim=2)
    torch.testing.assert_close(encoder(window).flatten(0, 1), encoder(flat))


# ---- shifts --------------------------------------------------------------------------------------------------------


def by_padding(picture: Tensor, down: int, right: int, pad: int) -> Tensor:
    """(C, H, W): edges repeated, then cut out, as DrQ describes it."""
    padded = nn.functional.pad(picture[None].float(), (pad,) * 4, mode="replicate")[0].to(picture.dtype)
    height, width = picture.shape[-2:]
    return padded[:, pad - down :, pad - right :][:, :height, :width]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_shift_is_padding_and_cutting_out(dtype: torch.dtype) -> None:
    pictures = torch.randint(200, (25, 2, 5, 7)).to(dtype)
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    out = shift(pictures, offsets)
    assert out.dtype == dtype
    for picture, moved, (down, right) in zip(pictures, out, offsets.tolist(), strict=True):
        assert torch.equal(moved, by_padding(picture, down, right, 2))


def test_no_shift_changes_nothing() -> None:
    pictures = torch.randint(256, (4, 3, 6, 6), dtype=torch.uint8)
    assert torch.equal(shift(pictures, torch.zeros(4, 2, dtype=torch.long)), pictures)
    encoder = Encoder(EncoderConfig((4,), 4, features=6, shift=0), {"rgb": (3, 8, 8), "depth": (1, 8, 8)}, 5)
    seen = frames(5, 1, (8, 8))
    assert torch.equal(encoder(seen, shifted=True), encoder(seen))


def test_every_row_has_its_own_shift_and_every_distance_is_drawn() -> None:
    offsets = random_offsets(2000, 2, torch.device("cpu"))
    counts = torch.bincount((offsets[:, 0] + 2) * 5 + offsets[:, 1] + 2, minlength=25)
    assert counts.min() > 40  # 80 of each are expected, 9 being a standard deviation
    one = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    assert len(shift(one, offsets[:50]).unique(dim=0)) > 10


def test_colour_and_depth_of_a_frame_are_shifted_alike() -> None:
    encoder = Encoder(EncoderConfig((4,), 4, features=6), {"rgb": (3, 8, 8), "depth": (1, 8, 8)}, 5)
    images: list[Tensor] = []
    encoder.convolutions.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    place = torch.arange(64).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    encoder(
        {"state": torch.zeros(40, 5), "rgb": place.byte().expand(-1, 3, -1, -1), "depth": place.short()}, shifted=True
    )
    (image,) = images
    torch.testing.assert_close(image[:, 0] * 255, image[:, 3] * 1000)
    assert len(image[:, 0].unique(dim=0)) > 10


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"depth": (1, 8, 8)}, "needs rgb"),
        ({"rgb": (3, 8, 8), "depth": (1, 4, 4)}, "in one size"),
        ({"rgb": (3, 8, 64)}, "8 x 64 cannot be halved 4 times"),
    ],
)
def test_pictures_that_cannot_be_encoded(shapes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Encoder(EncoderConfig(), shapes, 5)


@pytest.mark.parametrize("wrong", [{"channels": (16, 0)}, {"features": 0}, {"shift": -1}, {"last_kernel": 2}])
def test_wrong_settings(wrong: Any) -> None:
    with pytest.raises(UserError):
        EncoderConfig(**wrong)
