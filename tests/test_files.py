"""Files that operators name are read with a limit and never block."""

import os
from pathlib import Path

import pytest

from tocsin import files
from tocsin.errors import Refusal


def test_folders_pipes_and_large_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(b" " * (files.MAX_BYTES + 1))
    for path, reason in ((tmp_path, "Is a directory"), (pipe, "Not a regular file"), (large, "File too large")):
        with pytest.raises(Refusal, match=f"The list {path} cannot be read: {reason}"):
            files.setting_file(path, "The list")


def test_a_file_of_the_maximum_size_is_read(tmp_path: Path) -> None:
    content = b"x" * files.MAX_BYTES
    (tmp_path / "file").write_bytes(content)
    assert files.content_of(tmp_path / "file") == content
