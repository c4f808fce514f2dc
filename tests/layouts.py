"""The same few invented videos of THUMOS14 in every layout that `wsal_jax.data.layouts` reads."""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import savemat

from wsal_jax.data import thumos14

DURATION = 12.8
"""Seconds of every video: 20 snippets of 16 frames at 25 frames per second, 96 of 4 frames at 30."""


class Truth(NamedTuple):
    segments: list[tuple[float, float, str]]
    ambiguous: list[tuple[float, float]] = []  # noqa: RUF012


VIDEOS = {
    "video_validation_0000051": Truth([(1.0, 2.5, "Billiards"), (5.0, 7.25, "Billiards")]),
    "video_validation_0000052": Truth(
        [(0.5, 4.0, "CliffDiving"), (0.5, 4.0, "Diving"), (6.0, 7.0, "Diving")], ambiguous=[(8.0, 9.5)]
    ),
    "video_test_0000004": Truth([(2.0, 3.0, "Billiards"), (4.0, 6.5, "Diving")], ambiguous=[(9.0, 10.0)]),
    "video_test_0001496": Truth([(3.0, 8.0, "CliffDiving"), (3.0, 8.0, "Diving")]),
}


def split_of(id: str) -> str:
    return "train" if "validation" in id else "test"


def by_split(split: str) -> list[str]:
    return [id for id in VIDEOS if split_of(id) == split]


def features(id: str, stream: str, length: int = 20, dim: int = 4) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(f"{id} {stream}".encode()))
    return rng.standard_normal((length, dim)).astype(np.float32)


def joint(id: str, length: int = 20, dim: int = 4) -> np.ndarray:
    return np.concatenate([features(id, stream, length, dim) for stream in ("rgb", "flow")], axis=1)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=array.dtype == object)


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def database(subsets: dict[str, str], text: bool = False, **common) -> dict:
    """ActivityNet's JSON; `text` writes times as strings."""

    def segment(start, end):
        return [str(start), str(end)] if text else [start, end]

    return {
        "database": {
            id: {
                "subset": subsets[split_of(id)],
                "annotations": [{"segment": segment(*x[:2]), "label": x[2]} for x in truth.segments]
                + [{"segment": segment(*x), "label": "Ambiguous"} for x in truth.ambiguous],
                **common,
            }
            for id, truth in VIDEOS.items()
        }
    }


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def w_talc(root: Path) -> None:
    save(root / "Thumos14reduced-I3D-JOINTFeatures.npy", objects([joint(id) for id in VIDEOS]))
    folder = root / "Thumos14reduced-Annotations"
    save(folder / "videoname.npy", np.array([id.encode() for id in VIDEOS]))
    subsets = [{"train": b"validation", "test": b"test"}[split_of(id)] for id in VIDEOS]
    save(folder / "subset.npy", np.array(subsets))
    save(folder / "segments.npy", objects([[list(x[:2]) for x in truth.segments] for truth in VIDEOS.values()]))
    save(folder / "labels.npy", objects([[x[2].encode() for x in truth.segments] for truth in VIDEOS.values()]))
    save(folder / "labels_all.npy", objects([[b"Billiards"] for _ in VIDEOS]))  # wrong, as the real ones
    save(folder / "duration.npy", np.full((len(VIDEOS), 1), DURATION))
    for split, name in (("train", "val"), ("test", "test")):
        lines = [f"{id}  {s} {e}" for id in by_split(split) for s, e in VIDEOS[id].ambiguous]
        (folder / f"Ambiguous_{name}.txt").write_text("\n".join(lines))


def bas_net(root: Path) -> None:
    write_json(root / "gt.json", database({"train": "train", "test": "test"}, text=True))
    for id in VIDEOS:
        for stream in ("rgb", "flow"):
            save(root / "features" / split_of(id) / stream / f"{id}.npy", features(id, stream))
    for split in ("train", "test"):
        (root / f"split_{split}.txt").write_text("\n".join(by_split(split)) + "\n")


def ftcl(root: Path) -> None:
    write_json(root / "gt.json", database({"train": "train", "test": "test"}))
    for id in VIDEOS:
        save(root / split_of(id) / f"{id}.npy", joint(id))
    for split in ("train", "test"):
        (root / f"split_{split}.txt").write_text("\n".join(by_split(split)))


def dgam(root: Path) -> None:
    content = database({"test": "test", "train": ""}, text=True)
    content["database"] = {id: content["database"][id] for id in by_split("test")}
    write_json(root / "test_data" / "gt.json", content)
    (root / "test_data" / "THUMOS14_test_vid_list.txt").write_text("\n".join(by_split("test")))
    for split in ("train", "test"):
        labels = np.zeros((len(by_split(split)), len(thumos14.CLASSES)))
        for i, id in enumerate(by_split(split)):
            for *_, label in VIDEOS[id].segments:
                labels[i, thumos14.CLASSES.index(label)] = 1
            for stream in ("rgb", "flow"):
                save(root / f"{split}_data" / f"{stream}_features" / f"{i + 1}.npy", features(id, stream))
        save(root / f"{split}_data" / f"{split}_labels.npy", labels)


def a2cl_pt(root: Path) -> None:
    content = database({"train": "train", "test": "val"}, duration=DURATION)
    for video in content["database"].values():
        video["annotations"] = [x for x in video["annotations"] if x["label"] != "Ambiguous"]
    content["set_ambiguous"] = {id: truth.ambiguous for id, truth in VIDEOS.items() if truth.ambiguous}
    content["miscellany"] = {"fps_extracted": 25, "len_feature_chunk": 16}
    content["database"]["video_test_0000001"] = {"annotations": [], "duration": DURATION, "subset": "val"}
    write_json(root / "annotation.json", content)
    for split, name in (("train", "train"), ("test", "val")):
        features = {id: joint(id) for id in by_split(split)}
        if split == "test":
            features["video_test_0000001"] = joint("unannotated")
        save(root / f"feature_{name}.npy", np.array(features, object))


def cmcs(root: Path, crops: int = 1) -> None:
    for split, name in (("train", "val"), ("test", "test")):
        for id in by_split(split):
            for stream in ("rgb", "flow"):
                path = root / "I3D-4" / f"thumos-{name}-{stream}-resize" / f"{id}-{stream}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                around = np.arange(crops)[:, None, None] - (crops - 1) / 2
                feature = (features(id, stream, 93) + around).astype(np.float32)
                np.savez(path, feature=feature, frame_cnt=np.array(384))
        folder = root / "labels" / f"thumos14-{name}-annotations"
        folder.mkdir(parents=True)
        for label in {x[2] for id in by_split(split) for x in VIDEOS[id].segments}:
            lines = [f"{id}  {s} {e}" for id in by_split(split) for s, e, of in VIDEOS[id].segments if of == label]
            (folder / f"{label}_{name}.txt").write_text("\n".join(lines))
        lines = [f"{id}  {s} {e}" for id in by_split(split) for s, e in VIDEOS[id].ambiguous]
        (folder / f"Ambiguous_{name}.txt").write_text("\n".join(lines))
        (folder / "detclasslist.txt").write_text("7 BaseballPitch\n")
        fields = [("video_name", "O"), ("frame_rate_FPS", "f8"), ("video_duration_seconds", "f8")]
        table = np.array([(id, 30.0, DURATION) for id in by_split(split)], fields)
        savemat(root / "labels" / f"thumos14-{name}-meta.mat", {f"{name}_videos": table})


def opentad(root: Path) -> None:
    content = database({"train": "training", "test": "validation"}, duration=DURATION, frame=384)
    write_json(root / "annotations" / "thumos_14_anno.json", content)
    for id in VIDEOS:
        save(root / "features" / "i3d" / f"v_{id}_feats.npy", joint(id, 93, 1024))


WRITERS = {
    "w_talc": w_talc,
    "bas_net": bas_net,
    "ftcl": ftcl,
    "dgam": dgam,
    "a2cl_pt": a2cl_pt,
    "cmcs": cmcs,
    "opentad": opentad,
}
