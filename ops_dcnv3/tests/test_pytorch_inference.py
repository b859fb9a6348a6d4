"""The plain-PyTorch backend without gradients: the reference's numbers by a shorter way."""

import pytest
import torch
from helpers import CASES, geometry, random_arguments

from ops_dcnv3.functions import dcnv3, dcnv3_fused, dcnv3_reference, pytorch_inference
from ops_dcnv3.functions.pytorch_inference import dcnv3_plain


@pytest.fixture
def references(monkeypatch):
    """How often the reference runs."""
    counted = []

    def count(*arguments):
        counted.append(arguments)
        return dcnv3_reference(*arguments)

    monkeypatch.setattr(pytorch_inference, "dcnv3_reference", count)
    return counted


@pytest.mark.parametrize("case", CASES)
def test_reference_cases(case):
    with torch.no_grad():
        actual = dcnv3_plain(*case.arguments(), case.geometry)
    torch.testing.assert_close(actual, case.expected()["out"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.float16, 6e-3), (torch.bfloat16, 5e-2)],
)
def test_dtypes(dtype, tolerance, references):
    shape = geometry(group=3, group_channels=5)
    arguments = random_arguments(shape, dtype=dtype)
    actual = dcnv3_plain(*arguments, shape)
    expected = dcnv3_reference(*[tensor.double() for tensor in arguments], shape)
    assert actual.dtype == dtype and not references
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 1600, 1 << 19])  # one image, two and all seven at a time
def test_chunks(chunk, monkeypatch, references):
    monkeypatch.setattr(pytorch_inference, "CHUNK", chunk)
    shape = geometry(stride_h=2)
    arguments = random_arguments(shape, batch=7)
    torch.testing.assert_close(
        dcnv3_plain(*arguments, shape), dcnv3_reference(*arguments, shape), rtol=1e-9, atol=1e-9
    )
    assert not references


def test_pixels_that_are_not_sampled_do_not_matter(references):
    shape = geometry()
    input, offset, mask = random_arguments(shape)
    input[:, 0, 0], offset[..., 1::2] = float("inf"), -50.0  # every point above the image
    assert not dcnv3_plain(input, offset, mask, shape).any()
    assert len(references) == 1


def test_the_backend_takes_it_only_without_gradients(references):
    input, offset, mask = random_arguments(geometry())
    joined = torch.cat((offset, mask), -1)
    dcnv3(input, offset, mask, group=2, backend="pytorch")
    dcnv3_fused(input, joined, group=2, backend="pytorch")
    assert not references
    dcnv3(input.requires_grad_(), offset, mask, group=2, backend="pytorch").sum().backward()
    assert len(references) == 1


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_to_sample(batch):
    shape = geometry(kernel_h=1, kernel_w=1, pad_h=0, pad_w=0, remove_center=True)
    assert not dcnv3_plain(*random_arguments(shape, batch), shape).any()
    assert dcnv3_plain(*random_arguments(geometry(), batch), geometry()).shape == (batch, 7, 6, 8)


def test_default_device():
    arguments = random_arguments(geometry())
    expected = dcnv3_plain(*arguments, geometry())
    with torch.device("meta"):
        assert torch.equal(dcnv3_plain(*arguments, geometry()), expected)
