"""Training crops: aligned, flipped alike, and independent of workers, ranks and interruptions."""

from __future__ import annotations

import itertools
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from quantsr.data.crops import CROPS_PER_DECODE, CroppedImageDataset, sample_rng
from quantsr.data.images import read_rgb
from quantsr.data.loader import SeededSamples, TrainLoader, build_train_loader
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.errors import InputError
from tests.data.conftest import Maker


def options(folder: Path | list[Path], **extra: Any) -> dict[str, Any]:
    roots = [str(f) for f in folder] if isinstance(folder, list) else str(folder)
    return {"type": "CroppedImageDataset", "name": "t", "dataroot_gt": roots, "gt_size": 16, **extra}


def take(loader: TrainLoader, count: int) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(loader, count))


def assert_same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for key in ("lq", "gt"):
            assert torch.equal(one[key], other[key])


def find_crop(crop: np.ndarray, picture: np.ndarray, step: int) -> tuple[int, int, int] | None:
    """Top, left and symmetry (bits: hflip, vflip, transpose) of a crop ``(g, g, 3)`` in a picture
    ``(H, W, 3)``, corners at multiples of step."""
    side = crop.shape[0]
    for top in range(0, picture.shape[0] - side + 1, step):
        for left in range(0, picture.shape[1] - side + 1, step):
            part = picture[top : top + side, left : left + side]
            for symmetry in range(8):
                view = part[:, ::-1] if symmetry & 1 else part
                view = view[::-1] if symmetry & 2 else view
                view = view.swapaxes(0, 1) if symmetry & 4 else view
                if np.array_equal(view, crop):
                    return top, left, symmetry
    return None


@pytest.mark.parametrize("scale", [2, 4])
def test_crops_are_aligned_and_flipped_alike(make_pictures: Maker, scale: int) -> None:
    folder = make_pictures("hr", [(26, 31)])
    gt = mod_crop(read_rgb(folder / "p0.png"), scale)
    lq = imresize_uint8(gt, 1 / scale)
    symmetries = set()
    for index in range(40):
        batch = CroppedImageDataset({**options(folder), "scale": scale})[index]
        levels = {
            key: (value.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            for key, value in batch.items()
        }
        at = find_crop(levels["gt"], gt, scale)
        assert at is not None
        small = find_crop(levels["lq"], lq, 1)
        assert small == (at[0] // scale, at[1] // scale, at[2])
        symmetries.add(at[2])
    assert symmetries == set(range(8))


def test_soft_targets_are_cut_as_the_ground_truth(make_pictures: Maker) -> None:
    """Soft targets that are the negative of the ground truth are so in every crop, also after
    pickling."""
    folder = make_pictures("hr", [(27, 31), (24, 24)])
    soft = folder.parent / "soft"
    soft.mkdir()
    for path in folder.iterdir():
        cv2.imwrite(str(soft / path.name), 255 - mod_crop(cv2.imread(str(path)), 4))
    data = CroppedImageDataset({**options(folder, dataroot_soft=str(soft)), "scale": 4})
    copied = pickle.loads(pickle.dumps(data))  # noqa: S301  (our own bytes)
    for index in range(10):
        sample = data[index]
        assert torch.equal((sample["soft"] * 255).round(), 255 - (sample["gt"] * 255).round())
        assert torch.equal(copied[index]["soft"], sample["soft"])


def test_a_missing_or_misfit_soft_target_is_named(make_pictures: Maker) -> None:
    folder = make_pictures("hr", [(24, 24)])
    soft = make_pictures("soft", [(24, 20)])
    data = {**options(folder, dataroot_soft=str(soft)), "scale": 4}
    with pytest.raises(
        InputError, match=r"soft/p0.png: 20x24 where p0.png, .* has 24x24; check dataroot_soft"
    ):
        CroppedImageDataset(data)
    (soft / "p0.png").unlink()
    with pytest.raises(InputError, match=r"soft/p0.png: the soft target of p0.png is missing"):
        CroppedImageDataset(data)


def test_values_are_those_of_basicsr(make_pictures: Maker) -> None:
    folder = make_pictures("hr", [(16, 16)])
    batch = next(build_train_loader(options(folder, use_hflip=False, use_rot=False), 2, 0, 3))
    expected = read_rgb(folder / "p0.png").astype(np.float32) / 255.0
    assert batch["gt"].dtype == torch.float32
    assert batch["gt"].shape == (3, 3, 16, 16)
    assert batch["lq"].shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(batch["gt"][2].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("budget", [64, 0])
def test_a_resumed_loader_gives_the_same_crops(make_pictures: Maker, budget: int) -> None:
    opt = options(make_pictures("hr", [(40, 40), (20, 30), (60, 17)]), cache_budget_mb=budget)
    whole = build_train_loader(opt, 2, 7, 5)
    expected = take(whole, 60)  # beyond one pass, and beyond one window
    first = build_train_loader(opt, 2, 7, 5)
    take(first, 23)
    state = pickle.loads(pickle.dumps(first.state_dict()))  # noqa: S301
    second = build_train_loader(opt, 2, 7, 5)
    second.load_state_dict(state)
    assert_same(take(second, 37), expected[23:])
    first.load_state_dict({"position": 0, "seed": 7})  # to an earlier position, too
    assert_same(take(first, 3), expected[:3])
    for loader in (whole, first, second):
        loader.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_crops_do_not_depend_on_workers(make_pictures: Maker, workers: int) -> None:
    folder = make_pictures("hr", [(40, 40), (20, 30)])
    a = build_train_loader(options(folder), 2, 3, 4)
    b = build_train_loader(options(folder, num_worker_per_gpu=workers), 2, 3, 4)
    assert_same(take(a, 7), take(b, 7))
    assert a.state_dict() == b.state_dict() == {"position": 28, "seed": 3}
    a.close()
    b.close()


def test_ranks_share_the_stream(make_pictures: Maker) -> None:
    opt = options(make_pictures("hr", [(40, 40), (20, 30)]))
    single = build_train_loader(opt, 2, 3, 6)
    ranks = [build_train_loader(opt, 2, 3, 2, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(4):
        expected, parts = next(single), [next(loader) for loader in ranks]
        assert torch.equal(expected["gt"], torch.cat([part["gt"] for part in parts]))
    assert {loader.position for loader in [single, *ranks]} == {24}
    for loader in [single, *ranks]:
        loader.close()


def test_another_seed_gives_other_crops_and_is_not_resumed(make_pictures: Maker) -> None:
    opt = options(make_pictures("hr", [(64, 64)]))
    a, b = build_train_loader(opt, 2, 0, 4), build_train_loader(opt, 2, 1, 4)
    assert not torch.equal(next(a)["gt"], next(b)["gt"])
    with pytest.raises(InputError, match="manual_seed: 1, but"):
        b.load_state_dict(a.state_dict())
    a.close()
    b.close()


def test_large_pictures_give_more_crops(make_pictures: Maker) -> None:
    folder = make_pictures("hr", [(16, 16), (48, 64)])

    def counts(**extra: Any) -> Counter[int]:
        dataset = CroppedImageDataset({**options(folder, **extra), "scale": 2})
        rngs = [np.random.default_rng(i) for i in range(600)]
        return Counter(dataset._choose(i, rngs[i]) for i in range(600))

    by_area = counts()
    assert 20 <= by_area[0] <= 75  # 1/13 of 600 is 46
    assert counts(crop_sampling="picture") == {0: 300, 1: 300}


def test_each_picture_once_an_epoch_in_a_new_order(make_pictures: Maker) -> None:
    dataset = CroppedImageDataset(
        {**options(make_pictures("hr", [(16, 16)] * 6), crop_sampling="picture"), "scale": 2}
    )
    rng = np.random.default_rng(0)
    epochs = [[dataset._choose(6 * epoch + i, rng) for i in range(6)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def _gradient(crop: np.ndarray) -> float:
    """Of (3, n, n), pixel by pixel."""
    levels = crop.astype(int)
    size = levels.shape[1]
    down = [abs(c[y + 1, x] - c[y, x]) for c in levels for y in range(size - 1) for x in range(size)]
    right = [abs(c[y, x + 1] - c[y, x]) for c in levels for y in range(size) for x in range(size - 1)]
    return (sum(down) + sum(right)) / len(down)


def test_of_two_positions_the_crop_with_the_larger_gradient_is_taken(make_pictures: Maker) -> None:
    opt = {**options(make_pictures("hr", [(64, 48), (40, 72)])), "scale": 2}
    dataset = CroppedImageDataset({**opt, "crop_choice": "gradient"})
    size, later = dataset.sides["lq"], 0
    for index in range(40):
        rng = sample_rng(dataset.seed, index)
        lq = dataset.store.get(dataset._choose(index, rng)).lq
        rows, columns = (length - size + 1 for length in lq.shape[1:])
        first, second = ((int(rng.integers(rows)), int(rng.integers(columns))) for _ in range(2))
        gradients = [_gradient(lq[:, y : y + size, x : x + size]) for y, x in (first, second)]
        place = dataset.place(index)
        assert (place.top, place.left) == (first if gradients[0] >= gradients[1] else second)
        later += gradients[1] > gradients[0]
    assert 10 < later < 30


def test_beyond_the_memory_budget_each_picture_is_decoded_once_a_window(
    make_pictures: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantsr.data import store

    decoded: list[Path] = []
    load = store.load_pair

    def counted(source: store.Source, scale: int) -> store.Pair:
        decoded.append(source.gt)
        return load(source, scale)

    monkeypatch.setattr(store, "load_pair", counted)
    folder = make_pictures("hr", [(300, 400)] * 5)  # 450 kB each with LR
    loader = build_train_loader(options(folder, cache_budget_mb=2), 2, 0, 8)
    batches = 5 * CROPS_PER_DECODE // 8
    take(loader, batches)
    loader.close()
    assert 5 <= len(decoded) <= 5 + 3 * 2  # one pass, and the pictures decoded ahead
    assert len(loader.dataset.store._futures) == 0


def test_given_lr_pictures_are_used(make_pictures: Maker, tmp_path: Path) -> None:
    hr = make_pictures("hr", [(33, 33)])
    (tmp_path / "lr").mkdir()
    cv2.imwrite(str(tmp_path / "lr/p0x2.png"), np.full((16, 16, 3), 9, np.uint8))
    opt = options(hr, dataroot_lq=str(tmp_path / "lr"), filename_tmpl="{}x2")
    batch = next(build_train_loader(opt, 2, 0, 2))
    assert torch.all(batch["lq"] == torch.tensor(9 / 255))
    with pytest.raises(InputError, match=r"p0\.png: the LR picture of p0\.png is missing"):
        build_train_loader({**opt, "filename_tmpl": "{}"}, 2, 0, 2)
    with pytest.raises(InputError, match="not the x4 LR"):
        build_train_loader(opt, 4, 0, 2)


def test_many_folders_and_formats(make_pictures: Maker, tmp_path: Path) -> None:
    folders = [
        make_pictures(f"d{i}", [(20, 20)], suffix)
        for i, suffix in enumerate([".png", ".jpg", ".webp", ".bmp", ".tiff"])
    ]
    cv2.imwrite(str(folders[0] / "grey.png"), np.full((20, 20), 77, np.uint8))
    dataset = CroppedImageDataset({**options(folders), "scale": 2})
    assert len(dataset) == 6
    grey = next(
        pair
        for s, pair in zip(dataset.store.sources, dataset.store._pairs, strict=True)
        if s.gt.stem == "grey"
    )
    assert grey.gt.shape == (3, 20, 20)
    assert np.all(grey.gt == 77)


def test_bad_pictures_are_named(make_pictures: Maker, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_pictures("hr", [(15, 40), (16, 16)])
    with caplog.at_level(logging.WARNING):
        assert len(CroppedImageDataset({**options(folder), "scale": 2})) == 1
    assert "p0.png: smaller than gt_size 16; skipped" in caplog.text
    with pytest.raises(InputError, match="no picture is at least 18x18"):
        CroppedImageDataset({**options(folder, gt_size=18), "scale": 2})
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png: is not a picture"):
        CroppedImageDataset({**options(folder), "scale": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_size": 15}, "not a positive multiple of scale 2"),
        ({"dataroot_gt": "absent"}, "absent: no such folder"),
        ({"dataroot_gt": None}, "dataroot_gt: missing"),
        ({"type": "Nothing"}, "no data set is called 'Nothing'"),
        ({"crop_sampling": "x"}, "crop_sampling: 'x' is unknown"),
        ({"crop_choice": "x"}, "crop_choice: 'x' is unknown; use 'uniform' or 'gradient'"),
        ({"dataroot_lq": ["a", "b"]}, "2 folders for 1"),
    ],
)
def test_bad_options_are_named(make_pictures: Maker, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_train_loader({**options(make_pictures("hr", [(20, 20)])), **change}, 2, 0, 2)


def test_spawned_processes_get_the_pictures_in_shared_memory(make_pictures: Maker) -> None:
    import io
    from multiprocessing.reduction import ForkingPickler

    dataset = CroppedImageDataset({**options(make_pictures("hr", [(400, 400)])), "scale": 2})
    before = dataset[5]
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(dataset)
    assert len(buffer.getvalue()) < 20_000  # a handle, not 600 kB of pictures
    copy = pickle.loads(buffer.getvalue())  # noqa: S301
    assert torch.equal(copy[5]["gt"], before["gt"])
    assert torch.equal(dataset[5]["gt"], before["gt"])


def test_an_error_of_a_decoding_thread_is_raised(make_pictures: Maker) -> None:
    folder = make_pictures("hr", [(300, 400)] * 3)
    loader = build_train_loader(options(folder, cache_budget_mb=0), 2, 0, 2)
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"p\d\.png: is empty"):
        next(loader)
    loader.close()


def test_a_paired_set_of_basicsr_is_seeded_per_sample(make_pictures: Maker, tmp_path: Path) -> None:
    hr = make_pictures("hr", [(40, 40)] * 3)
    (tmp_path / "lr").mkdir()
    for path in hr.iterdir():
        cv2.imwrite(str(tmp_path / "lr" / path.name), imresize_uint8(cv2.imread(str(path)), 1 / 2))
    opt = options(
        hr, type="PairedImageDataset", dataroot_lq=str(tmp_path / "lr"), use_hflip=True, use_rot=True
    )
    opt["io_backend"] = {"type": "disk"}
    a, b = build_train_loader(opt, 2, 5, 2), build_train_loader({**opt, "num_worker_per_gpu": 2}, 2, 5, 2)
    expected = take(a, 6)
    assert expected[0]["gt"].shape == (2, 3, 16, 16)
    assert_same(expected, take(b, 6))
    c = build_train_loader(opt, 2, 5, 2)
    c.load_state_dict({"position": 8, "seed": 5})
    assert_same(take(c, 2), expected[4:])
    b.close()
    missing = {**opt, "dataroot_lq": str(tmp_path / "none")}
    with pytest.raises(InputError, match="PairedImageDataset cannot be built from its options"):
        build_train_loader(missing, 2, 5, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_damaged_picture_of_a_pair_is_named_in_one_line(
    make_pictures: Maker, tmp_path: Path, workers: int
) -> None:
    hr, lr = make_pictures("hr", [(40, 40)]), make_pictures("lr", [(20, 20)])
    opt = options(hr, type="PairedImageDataset", dataroot_lq=str(lr), num_worker_per_gpu=workers)

    def message() -> str:
        loader = build_train_loader(opt, 2, 5, 2)
        with pytest.raises(InputError) as caught:
            next(loader)
        loader.close()
        return str(caught.value)

    (lr / "p0.png").write_bytes(b"no picture")
    assert message().startswith(f"{lr}/p0.png: is not a picture this program can read; replace or remove")
    cv2.imwrite(str(lr / "p0.png"), np.zeros((10, 10, 3), np.uint8))
    assert message().startswith(f"{lr}/p0.png with {hr}/p0.png: cannot be used for training (")
    assert "\n" not in message()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_lmdb_is_one_line(tmp_path: Path, workers: int) -> None:
    for name in ("hr.lmdb", "lr.lmdb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta_info.txt").write_text("a.png (48,48,3) 1\n")
    opt = options(tmp_path / "hr.lmdb", type="PairedImageDataset", dataroot_lq=str(tmp_path / "lr.lmdb"))
    opt |= {"io_backend": {"type": "lmdb"}, "num_worker_per_gpu": workers}
    loader = build_train_loader(opt, 2, 5, 2)
    with pytest.raises(
        InputError, match=r"^a: cannot be used for training \(.*lr\.lmdb: .*\); check the files$"
    ):
        next(loader)
    loader.close()


@pytest.mark.parametrize(("pictures", "processes", "batch"), [(12, 3, 2), (7, 2, 2), (5, 4, 3)])
def test_processes_draw_each_picture_once_in_every_epoch(pictures: int, processes: int, batch: int) -> None:
    """Also where an epoch ends within a batch: the stream of samples is that of one process."""

    class Numbers(Dataset[Any]):
        def __len__(self) -> int:
            return pictures

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"lq": torch.tensor(index), "gt": torch.tensor(index)}

    def loader(rank: int, size: int, per_rank: int) -> TrainLoader:
        data = SeededSamples(Numbers(), seed=3)
        return TrainLoader(data, batch_size=per_rank, seed=3, rank=rank, world_size=size)

    parts = [loader(rank, processes, batch) for rank in range(processes)]
    alone = loader(0, 1, batch * processes)
    seen: list[int] = []
    for _ in range(3 * pictures):
        together = [int(number) for part in parts for number in next(part)["lq"]]
        assert together == next(alone)["lq"].tolist()
        seen += together
    assert {part.position for part in parts} == {alone.position}
    for epoch in range(len(seen) // pictures):
        assert sorted(seen[epoch * pictures : (epoch + 1) * pictures]) == list(range(pictures))
