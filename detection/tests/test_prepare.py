"""Downloads from a local server, and the programs that bring data sets into shape."""

from __future__ import annotations

import http.server
import io
import json
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mini_data
import pytest

downloads = mini_data.tool("download_dataset")
fetching = mini_data.tool("fetching")
crowd = mini_data.tool("create_crowd_anno")
prepare = mini_data.tool("prepare_dataset")


# downloads


class Server:
    """Serves files by name; `ranges` says whether it can send the rest of a file."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cut: int | None = None  # bytes after which the connection is lost, once
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.asked.append((self.path, wanted))
                content = outer.files.get(self.path.lstrip("/"))
                if content is None:
                    self.send_error(404)
                    return
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if wanted and outer.ranges and start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = len(content) if outer.cut is None else start + outer.cut
                outer.cut = None
                self.wfile.write(content[start:end])

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def zipped(names: Sequence[str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, name * 100)
    return stream.getvalue()


def tarred(names: Sequence[str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return stream.getvalue()


def main(module: object, *args: str) -> int:
    """The program, as its command line runs it."""
    errors = (fetching.DownloadError,) if module is downloads else ()
    return module.run_program(module.run, module.parse_args(args), *errors)


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Makes the files of the server a data set named coco2017; name=folder."""
    found = [
        fetching.Source(server.url + name.replace("__", "."), folder)
        for name, folder in sources.items()
    ]
    monkeypatch.setitem(downloads.DATA_SETS, "coco2017", ("data/coco", found))


def test_download_and_unpack(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.files = {
        "images.zip": zipped(["val2017/1.jpg", "val2017/2.jpg"]),
        "notes.tar.gz": tarred(["a.json"]),
        "plain.json": b"{}",
    }
    offer(server, monkeypatch, images__zip="", notes__tar__gz="annotations", plain__json="")
    assert main(downloads, "--unzip", "--delete", "--threads", "2") == 0
    folder = tmp_path / "data" / "coco"
    assert (folder / "val2017" / "2.jpg").read_text().startswith("val2017/2.jpg")
    assert (folder / "annotations" / "a.json").is_file()
    assert (folder / "plain.json").read_bytes() == b"{}"
    assert (
        not list(folder.rglob("*.zip")) + list(folder.rglob("*.gz")) + list(folder.rglob("*.part"))
    )
    asked = len(server.asked)
    assert main(downloads, "--unzip", "--delete") == 0
    assert len(server.asked) == asked  # all is there


def test_archives_stay_without_unzip(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"images.zip": zipped(["1.jpg"])}
    offer(server, monkeypatch, images__zip="")
    assert main(downloads, "--save-dir", str(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["images.zip"]
    assert main(downloads, "--save-dir", str(tmp_path), "--unzip") == 0
    assert (tmp_path / "1.jpg").is_file() and (tmp_path / "images.zip").is_file()


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    """The rest is asked for; a server that cannot do so sends everything."""
    server.files = {"a.bin": bytes(range(256)) * 100}
    server.cut = 1000
    server.ranges = ranges
    target = tmp_path / "a.bin"
    with pytest.raises(fetching.DownloadError, match="of 25600 bytes arrived; run the same"):
        fetching.download(server.url + "a.bin", target)
    assert not target.exists()
    part = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < part < 25600
    fetching.download(server.url + "a.bin", target)
    assert target.read_bytes() == server.files["a.bin"]
    assert server.asked[-1] == ("/a.bin", f"bytes={part}-")


def test_a_whole_part_only_gets_its_name(server: Server, tmp_path: Path) -> None:
    server.files = {"a.bin": b"x" * 500}
    (tmp_path / "a.bin.part").write_bytes(b"x" * 500)
    assert fetching.download(server.url + "a.bin", tmp_path / "a.bin").read_bytes() == b"x" * 500
    (tmp_path / "b.bin.part").write_bytes(b"y" * 900)  # longer than the file: of something else
    server.files["b.bin"] = b"z" * 500
    assert fetching.download(server.url + "b.bin", tmp_path / "b.bin").read_bytes() == b"z" * 500


def test_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The message has the address and the place for a copy that came another way."""
    source = fetching.Source("http://127.0.0.1:9/train2017.zip")
    monkeypatch.setitem(downloads.DATA_SETS, "coco2017", ("data/coco", [source]))
    assert main(downloads, "--save-dir", str(tmp_path)) == 1
    last = caplog.records[-1].getMessage()
    assert "1 of 1 files are missing" in last
    assert "http://127.0.0.1:9/train2017.zip could not be downloaded" in last
    assert f"put it at {tmp_path / 'train2017.zip'}" in last


def test_one_missing_file_does_not_stop_the_others(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.files = {"here.json": b"{}"}
    offer(server, monkeypatch, gone__json="", here__json="")
    assert main(downloads, "--save-dir", str(tmp_path), "--threads", "1") == 1
    assert (tmp_path / "here.json").is_file()
    assert "Not Found" in caplog.text


def test_damaged_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"a.zip": b"<html>not an archive</html>"}
    offer(server, monkeypatch, a__zip="")
    assert main(downloads, "--save-dir", str(tmp_path), "--unzip", "--delete") == 1
    assert (tmp_path / "a.zip").is_file()


@pytest.mark.parametrize(
    "args", [["--dataset-name", "coco"], ["--threads", "0"], ["--delete"], ["--unzipp"]]
)
def test_wrong_arguments(args: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        downloads.parse_args(args)
    assert error.value.code == 2


def test_every_file_is_listed_once() -> None:
    """Published data sets; LVIS with its validation annotations."""
    counts = {name: len(sources) for name, (_, sources) in downloads.DATA_SETS.items()}
    assert counts == dict(coco2017=3, lvis=2, voc2007=2, voc2012=1, objects365v2=2 + 51 + 44)
    for folder, sources in downloads.DATA_SETS.values():
        places = {(source.folder, source.name) for source in sources}
        assert len(places) == len({source.url for source in sources}) == len(sources)
        assert folder.startswith("data")
    names = [source.name for source in downloads.DATA_SETS["lvis"][1]]
    assert names == ["lvis_v1_train.json.zip", "lvis_v1_val.json.zip"]


# CrowdHuman


@pytest.fixture
def root(tmp_path: Path) -> Path:
    mini_data.write_crowd_human(tmp_path)
    return tmp_path


def test_crowd_annotations(root: Path) -> None:
    assert main(crowd, "--data-root", str(root), "--dataset-split", "val") == 0
    content = json.loads((root / "CrowdHuman/annotations/annotation_val.json").read_text())
    assert content["images"][0] == dict(
        id=1, file_name="273271,val0.jpg", width=mini_data.WIDTH, height=mini_data.HEIGHT
    )
    assert [row["iscrowd"] for row in content["annotations"]] == [0, 0, 1] * 2
    assert content["annotations"][3]["bbox"] == list(mini_data.BOXES[0])
    assert content["annotations"][3]["image_id"] == 2
    assert content["categories"] == [dict(id=1, name="person")]


def test_what_is_ignored() -> None:
    assert crowd.is_ignored(dict(tag="mask", extra={}))
    assert crowd.is_ignored(dict(tag="person", extra=dict(ignore=1)))
    assert not crowd.is_ignored(dict(tag="person", extra=dict(box_id=0, occ=1)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "Images/273271,val1.jpg").unlink(), "unpack all CrowdHuman_"),
        (
            lambda folder: (folder / "Images/273271,val0.jpg").write_bytes(b"x"),
            "val0.jpg is not an image",
        ),
        (
            lambda folder: (folder / "annotations/annotation_val.odgt").write_text('{"ID": "a"'),
            "annotation_val.odgt line 1 is not an image of CrowdHuman",
        ),
        (
            lambda folder: (folder / "annotations/annotation_val.odgt").unlink(),
            "annotation_val.odgt does not exist: download the annotations and images",
        ),
    ],
)
def test_crowd_annotations_that_cannot_be_made(
    root: Path, damage: object, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(root / "CrowdHuman")
    assert main(crowd, "--data-root", str(root), "--dataset-split", "val") == 1
    assert message in caplog.text
    assert not (root / "CrowdHuman/annotations/annotation_val.json").exists()


# preparation


def test_lvis_minival(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The images of COCO val2017 out of LVIS val; the others' annotations go."""
    mini_data.write_lvis(tmp_path, ["a", "b", "c"])
    assert main(prepare, "lvis", "--data-root", str(tmp_path)) == 0
    content = json.loads((tmp_path / "lvis_v1/annotations/lvis_v1_minival.json").read_text())
    assert [row["id"] for row in content["images"]] == [1]
    assert {row["image_id"] for row in content["annotations"]} == {1}
    assert len(content["categories"]) == 3
    assert "minival has 1 images, published results use 4809" in caplog.text


def test_lvis_links_to_the_images_of_coco(tmp_path: Path) -> None:
    mini_data.write_lvis(tmp_path / "made", ["a", "b", "c"])
    lvis = tmp_path / "made" / "lvis_v1"
    for folder in ("train2017", "val2017"):
        (tmp_path / "coco").mkdir(exist_ok=True)
        (lvis / folder).rename(tmp_path / "coco" / folder)
    lvis.rename(tmp_path / "lvis_v1")
    assert main(prepare, "lvis", "--data-root", str(tmp_path)) == 0
    assert (tmp_path / "lvis_v1" / "train2017").is_symlink()
    assert list((tmp_path / "lvis_v1" / "val2017").glob("*.jpg"))


def test_openimages_sizes(tmp_path: Path) -> None:
    """In the order of the csv file, once per image."""
    mini_data.write_openimages(tmp_path, classes=5)
    mini_data.picture(tmp_path / "OpenImages/validation/validation1.jpg", 30, 20)
    assert main(prepare, "openimages", "--data-root", str(tmp_path)) == 0
    path = tmp_path / "OpenImages/annotations/validation-image-metas.pkl"
    metas = pickle.loads(path.read_bytes())
    assert [Path(meta["filename"]).name for meta in metas] == [
        "validation0.jpg",
        "validation1.jpg",
    ]
    assert metas[1]["ori_shape"] == (20, 30, 3)


def test_voc_2012_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its annotations are secret: the images get files with their sizes, for mmdet."""
    devkit = tmp_path / "VOCdevkit"
    for folder, split in (("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")):
        mini_data.write_voc(devkit / folder, split)
    assert main(prepare, "voc", "--data-root", str(tmp_path)) == 0
    assert "only needed for VOC 2012 test" in caplog.text
    mini_data.write_voc(devkit / "VOC2012test", "test", with_objects=False)
    assert main(prepare, "voc", "--data-root", str(tmp_path)) == 0
    text = (devkit / "VOC2012test/Annotations/test1.xml").read_text()
    assert f"<width>{mini_data.WIDTH}</width><height>{mini_data.HEIGHT}</height>" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lvis", r"coco/train2017 does not exist: LVIS uses COCO's images"),
        ("openimages", r"oidv6-train-annotations-bbox.csv does not exist: get it from https"),
        ("objects365", r"Obj365_v2/train does not exist: tools/download_dataset.py"),
        ("voc", r"trainval.txt does not exist: tools/download_dataset.py --dataset-name voc2007"),
    ],
)
def test_nothing_there(
    tmp_path: Path, name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(prepare, name, "--data-root", str(tmp_path)) == 1
    assert re.search(message, caplog.text)
