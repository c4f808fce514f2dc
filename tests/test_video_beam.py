"""The Beam pipeline leaves what the plain command does."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs the extra [video]")
pytest.importorskip("cv2", reason="needs the extra [video]")
pytest.importorskip("apache_beam", reason="needs the extra [beam]")

import tiny_extractor
from tiny_extractor import encode, regular

from wsal_jax import extract
from wsal_jax.video import extractor


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_beam_leaves_what_the_plain_command_does(tmp_path, monkeypatch, capsys):
    """On its local runner; a broken video fails alone, and a second call keeps what is there."""
    monkeypatch.setitem(extractor.EXTRACTORS, "tiny", tiny_extractor.make)
    monkeypatch.setattr(sys, "argv", ["extract"])  # Beam looks at it
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed, name in enumerate("abc"):
        encode(videos / f"{name}.mp4", regular(40 + 20 * seed), seed=seed)
    (videos / "d.mp4").write_bytes(b"no video")
    (tmp_path / "labels.csv").write_text("a,train,x;y\nb,train,y\nc,test,\nd,test,\n")
    arguments = [str(videos), "--labels", str(tmp_path / "labels.csv"), "--extractor", "tiny", "--out"]
    for name, more in (("plain", ["--workers", "1"]), ("beam", ["--beam"]), ("beam", ["--beam"])):
        with pytest.raises(SystemExit) as exit:
            extract.main([*arguments, str(tmp_path / name), *more])
        assert exit.value.code == 1
        told = capsys.readouterr().out
        assert "d.mp4: is not a video, or damaged" in told
    assert "4 videos: 0 extracted, 3 kept, 1 failed" in told
    assert tree(tmp_path / "beam") == tree(tmp_path / "plain")
    assert not list(Path(tmp_path / "beam").glob(".beam*"))
