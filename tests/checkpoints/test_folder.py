"""What a model's folder is called."""

import pytest

from workbench.checkpoints.folder import title


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("llama-tiny", "llama-tiny"),
        ("all-MiniLM-L6-v2/model", "all-MiniLM-L6-v2"),
        ("models--google--gemma-3-1b-pt/snapshots/0a1b2c3d", "gemma-3-1b-pt"),
        ("mine/snapshots/step-100", "step-100"),
    ],
)
def test_a_folder_is_called_what_a_person_would_call_it(tmp_path, path, expected):
    folder = tmp_path / path
    folder.mkdir(parents=True)
    assert title(folder) == expected
