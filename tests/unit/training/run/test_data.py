"""What is refused of a run's data before a model is opened."""

import pytest

from tests.pictures import write_pairs
from vembed.data.settings import DataSettings
from vembed.errors import ConfigError
from vembed.training.run.data import read_run_data


def test_holding_files_is_refused_where_no_data_set_has_pictures(tmp_path):
    texts, pictures = write_pairs(tmp_path / "t", 4, "t2t"), write_pairs(tmp_path / "i", 4, "t2i")
    settings = {"retrieval_mode": "t2t", "image_host_cache": "encoded", "val_fraction": 0.0}
    with pytest.raises(ConfigError, match="image_host_cache: encoded has no effect: the training data has no images"):
        read_run_data(DataSettings(data_path=texts, **settings), seed=0)
    both = (texts, {"path": pictures, "retrieval_mode": "t2i"})
    assert len(read_run_data(DataSettings(data_path=both, **settings), seed=0).train) == 2
