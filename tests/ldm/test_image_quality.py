import numpy as np
import pytest
import torch
from scipy import ndimage

from ldm.evaluation.metrics.image_quality import psnr, ssim


def pair(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    b = (a + 0.3 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(-1, 1)
    return a, b


def reference_ssim(a, b):
    """Wang et al. with scipy's Gaussian filter (truncated at 5 pixels), in 8-bit units, window inside the image."""
    a, b = (a + 1) * 127.5, (b + 1) * 127.5

    def smooth(x):
        return ndimage.gaussian_filter(x, 1.5, truncate=5 / 1.5, mode="constant")[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = smooth(a), smooth(b)
    va, vb, cab = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    return (((2 * ma * mb + c1) * (2 * cab + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def test_ssim_equals_an_independent_computation():
    a, b = pair((3, 3, 20, 27))
    expected = [
        np.mean([reference_ssim(x[c].numpy(), y[c].numpy()) for c in range(3)]) for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ssim(a.float(), b.float()).double(), ssim(a, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_psnr_of_a_known_error_and_per_image():
    a = torch.zeros(2, 3, 16, 16)
    b = a.clone()
    b[0] += 0.2  # MSE 0.04: 10 log10(4 / 0.04) = 20 dB
    b[1, :, :8] += 0.2  # half of the error: 23.01 dB
    torch.testing.assert_close(psnr(b, a), torch.tensor([20.0, 20.0 + 10 * np.log10(2)], dtype=torch.float32))
    assert psnr(a, a).isinf().all()
    torch.testing.assert_close(psnr(a + 5, a), psnr(a + 1, a))  # clipped as a shown picture is


def test_shapes_are_checked():
    a = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, a[:1])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[..., :10], a[..., :10])
