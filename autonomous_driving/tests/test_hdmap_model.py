"""VectorMapNet as a whole: from planted pixels to the map, batches, empty frames, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ad_common.geometry import project
from hdmap_tiny import CANVAS, det_net, frames, gen_net, looking, mapper, polys
from mmdet.models.builder import build_head

UNUSED = {  # parts of the published weights that nothing reads
    "backbone.masked_embeds.weight",
    "head.det_net.label_embed.weight",
    "head.det_net.transformer.level_embeds",
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return mapper()


# Encoder


def test_a_planted_feature_lands_where_its_point_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bright feature at the pixel of (12.3, 3.9, 0) shows in that cell of the ground plane."""
    encoder = mapper().backbone
    encoder.outconvs = torch.nn.Identity()  # shows what the cameras gave
    cell = (27, 12)  # column (x), row (y)
    point = encoder.bev_planes[0, cell[1], cell[0]].numpy().astype(float)
    np.testing.assert_allclose(point, [27 / 39 * 60 - 30, 12 / 19 * 30 - 15, 0.0], atol=1e-5)
    (pixel,), depth = project(point[None], looking(0.0))
    assert depth[0] == pytest.approx(point[0]) and 0 < pixel[0] < 96 and 0 < pixel[1] < 64

    def plant(img: torch.Tensor) -> torch.Tensor:
        planted = torch.zeros(len(img), 16, 64, 96)  # as fine as the image
        planted[0, 5, int(pixel[1]), int(pixel[0])] = 1.0  # camera 0
        planted[1] = 7.0  # camera 1 looks the other way
        return planted

    monkeypatch.setattr(encoder, "extract_img_feat", plant)
    images, metas = frames(1)
    volume = encoder(images, metas)
    assert volume.shape == (1, 2 * 19, 20, 40)
    volume = volume.unflatten(1, (19, 2))[0]  # feature and x, y, z; plane; row; column
    assert volume[5, 0, cell[1], cell[0]] > 0.2
    shown = volume[5, 0] * (volume[4, 0] == 0)  # without what camera 1 sees
    rows, columns = torch.nonzero(shown, as_tuple=True)
    assert set(rows.tolist()) <= {11, 12, 13} and (columns - 27).abs().max() <= 3
    assert (volume[4, 0][:, :10] == 7).any() and (volume[4, 0][:, 20:] == 0).all()
    torch.testing.assert_close(volume[16:, 0, cell[1], cell[0]], torch.from_numpy(point).float())
    torch.testing.assert_close(volume[18, 1], torch.ones(20, 40))  # the upper plane


def test_images_that_do_not_fit(model: torch.nn.Module) -> None:
    images, metas = frames(1)
    with pytest.raises(ValueError, match="multiples of 32"):
        model.backbone(images[..., :90], metas)
    with pytest.raises(ValueError, match="has 2 cameras; the frame has 1 images"):
        model.backbone(images[:, :1], metas)
    with pytest.raises(ValueError, match="1 matrices"):
        model.backbone(images, [{"lidar2img": metas[0]["lidar2img"][:1]}])


# Results


def test_results(model: torch.nn.Module) -> None:
    images, metas = frames(2)
    results = model(return_loss=False, img=images, img_metas=metas)
    assert [result["token"] for result in results] == ["frame0", "frame1"]
    for result in results:
        assert set(result) == {"token", "vectors", "scores", "labels"}
        assert 0 < len(result["vectors"]) == len(result["scores"]) == len(result["labels"]) <= 5
        assert (np.diff(result["scores"]) <= 0).all() and set(result["labels"]) <= {0, 1, 2}
        for vector in result["vectors"]:
            assert vector.dtype == np.float32 and vector.shape[1] == 2
            assert 2 <= len(vector) <= 6  # max_points
            assert (vector >= [-30.001, -15.001]).all() and (vector <= [32.001, 17.001]).all()


def equal(a: list[dict], b: list[dict]) -> bool:
    """Whether two lists of results have the same lines and nearly the same scores."""
    return all(
        len(x["vectors"]) == len(y["vectors"])
        and all(map(np.array_equal, x["vectors"], y["vectors"]))
        and np.allclose(x["scores"], y["scores"], atol=1e-6)
        for x, y in zip(a, b, strict=True)
    )


def test_a_batch_gives_what_its_frames_give(model: torch.nn.Module) -> None:
    images, metas = frames(3)
    together = model.forward_test(images, metas)
    alone = [model.forward_test(images[i : i + 1], metas[i : i + 1])[0] for i in range(3)]
    assert equal(together, alone)
    assert not equal(together[:1], together[1:2])


def test_the_seed_decides(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, metas = frames(1)
    first = model.forward_test(images, metas)
    torch.manual_seed(99)  # no matter what else draws random numbers
    assert equal(first, model.forward_test(images, metas))
    monkeypatch.setattr(model.head, "seed", 1)
    assert not equal(first, model.forward_test(images, metas))


def test_a_model_that_finds_nothing_returns_nothing() -> None:
    quiet = mapper()
    quiet.head.gen_net._project_to_logits.bias.data[0] = 1e3  # every line stops at once
    images, metas = frames(2)
    for result in quiet.forward_test(images, metas):
        assert result["vectors"] == [] and result["scores"].shape == (0,)


def test_lines_go_from_tokens_to_metres(model: torch.nn.Module) -> None:
    line = model.head.to_metres(torch.tensor([1, 1, 40, 20]))
    np.testing.assert_allclose(line, [[-30, -15], [32, 17]])
    half = model.head.to_metres(torch.tensor([20, 10, 21, 11]))  # either side of the middle
    np.testing.assert_allclose(half.mean(axis=0), [1, 1], atol=1e-5)  # of the region and its margin


# Training


def test_gradients_reach_every_parameter_that_is_used() -> None:
    model = mapper().train()
    for name, p in model.head.det_net.named_parameters():  # these start at 0
        if name.endswith(("reg.0.6.weight", "sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(p, std=0.1)
    images, metas = frames(2)
    out = model.train_step(
        {"img": images, "img_metas": metas, "polys": [polys([4, 3]), polys([5])]}, None
    )
    out["loss"].backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == UNUSED
    # The branch behind DCNv3's offsets and masks, whose weights start at 0, is silent at first.
    used = [
        (name, p)
        for name, p in model.named_parameters()
        if p.requires_grad and "dcn.dw_conv" not in name
    ]
    assert all(p.grad is not None for _, p in used)
    assert not [name for name, p in used if p.grad.abs().sum() == 0]


def test_losses_and_their_sum(model: torch.nn.Module) -> None:
    images, metas = frames(2)
    batch = {"img": images, "img_metas": metas, "polys": [polys([4, 3]), polys([5])]}
    out = model.train_step(batch, None)
    names = {"det_cls", "det_reg", "det_d0.cls", "det_d0.reg", "gen_seq"}
    assert set(out["log_vars"]) == names | {"loss"}
    assert out["num_samples"] == 2
    total = sum(out["log_vars"][name] for name in names)
    assert out["log_vars"]["loss"] == pytest.approx(total, rel=1e-5)
    assert out["loss"].item() == pytest.approx(total, rel=1e-5)


def test_mixed_precision(model: torch.nn.Module) -> None:
    """bfloat16 changes the losses by little; boxes, in pixels, stay in float32."""
    images, metas = frames(2)
    targets = [polys([4, 3]), polys([5])]
    exact = model.forward_train(images, metas, targets)
    with torch.autocast("cpu", torch.bfloat16):
        bev = model.extract_feat(images, metas)
        assert all(boxes.dtype == torch.float32 for _, boxes in model.head.det_net(bev))
        rough = model.forward_train(images, metas, targets)
        results = model.forward_test(images, metas)
    for name, value in exact.items():
        assert rough[name].item() == pytest.approx(value.item(), rel=0.2), name
    assert all(np.isfinite(vector).all() for result in results for vector in result["vectors"])


@pytest.mark.parametrize("lengths", [[[], []], [[3], []], [[], [2, 5]]])
def test_frames_without_lines(lengths: list[list[int]]) -> None:
    """The detector learns that nothing is there; every parameter has a gradient, as DDP needs."""
    model = mapper().train()
    images, metas = frames(2)
    losses = model.forward_train(images, metas, [polys(each) for each in lengths])
    assert all(torch.isfinite(value) for value in losses.values())
    assert set(losses) == {"det_cls", "det_reg", "det_d0.cls", "det_d0.reg", "gen_seq"}
    if not any(lengths):
        assert losses["gen_seq"] == 0 and losses["det_reg"] == 0
    assert losses["det_cls"] > 0
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_the_generator_learns_from_moved_boxes_but_true_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = mapper(augmentation=dict(p=1.0, scale=0.2)).head
    seen = {}

    def note(bev, elements, inputs, targets, weights):
        seen.update(boxes=elements.boxes, inputs=inputs, targets=targets)
        return {"seq": torch.zeros(())}

    monkeypatch.setattr(head.gen_net, "loss", note)
    truth = polys([4, 3])
    head.forward_train(torch.randn(1, 16, 5, 10), [truth])
    assert not torch.equal(seen["boxes"], truth["gen_bbox"])
    assert torch.equal(seen["targets"][0], truth["sequences"][0])
    assert not torch.equal(seen["inputs"], seen["targets"])


def test_canvases_must_agree() -> None:
    with pytest.raises(ValueError, match="same canvas_size"):
        build_head(dict(type="DGHead", det_net=det_net(), gen_net=gen_net(canvas_size=(20, 20))))
    assert (
        build_head(dict(type="DGHead", det_net=det_net(), gen_net=gen_net())).canvas_size == CANVAS
    )
