"""Settings that say which data is read and what happens to rows that cannot be used."""

from typing import Annotated, Literal

from pydantic import Field

from vembed.utils.settings import COMMON, NEEDS_CONSENT, Section, instead_of, only_with

RetrievalMode = Literal["t2i", "i2t", "i2i", "t2t", "m2i", "m2t", "t2m", "i2m", "m2m"]
Path = str
ColumnMapping = dict[str, str | tuple[str, ...]]


class DataEntry(Section):
    """One data set of a list of several. Keys left out take the run's value."""

    path: Path = Field(description="File, folder, pattern of Parquet files, or hub name.")
    name: str | None = Field(
        None, description="What reports call it; default: its retrieval mode if unique, else the file's stem."
    )
    retrieval_mode: RetrievalMode | None = Field(None, description="Which side is text (t), image (i) or both (m).")
    weight: float = Field(
        1.0, gt=0, description="How often the set is drawn, relative to its size: 2 means twice per epoch."
    )
    column_mapping: ColumnMapping | None = Field(None, description="Our field -> the data's column, or columns.")
    image_root: str | None = Field(None, description="Folder that image paths are relative to.")
    split: str | None = Field(None, description="Split of a hub data set, a DatasetDict or a folder of Parquet files.")
    subset: str | None = Field(None, description="Configuration name of a hub data set, or folder of Parquet files.")
    quoting: Literal["standard", "none"] | None = Field(
        None,
        description="Quotes of a CSV or TSV file: standard ones around cells, or none (plain text); default: CSV has"
        " standard ones, TSV where they match.",
    )


DataSource = Path | DataEntry | Annotated[tuple[DataEntry | Path, ...], Field(min_length=1)]


def data_entries(source: DataSource | None) -> tuple[DataEntry | Path, ...]:
    """The entries of a source: none, the one that it is, or those of its list.

    >>> data_entries("pairs.csv")
    ('pairs.csv',)
    """
    if source is None:
        return ()
    return source if isinstance(source, tuple) else (source,)


class DataSettings(Section):
    """The data: where it is, what its columns mean, how bad rows are handled."""

    data_path: DataSource | None = Field(
        None,
        description="Training data: a file, folder or hub name, one as {path, retrieval_mode, weight, ...}, or a list.",
        json_schema_extra=COMMON,
    )
    val_data_path: DataSource | None = Field(
        None,
        description="Data that chooses the best checkpoint; default: val_fraction of the training data.",
        json_schema_extra=COMMON | instead_of("val_fraction"),
    )
    test_data_path: DataSource | None = Field(
        None, description="Data for the headline figures; never used to choose anything.", json_schema_extra=COMMON
    )
    val_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share split off for validation when val_data_path is absent (whole groups); 0: none.",
    )
    retrieval_mode: RetrievalMode = Field(
        "t2i",
        description="What a query and a document are: t text, i image, m text and image.",
        json_schema_extra=COMMON,
    )
    column_mapping: ColumnMapping = Field(
        default_factory=dict,
        description="Our field (query, positive, negatives, group, ...) -> the data's column, or a list of columns.",
        json_schema_extra=COMMON,
    )
    image_root: str | None = Field(
        None, description="Folder that image paths are relative to; default: the data file's folder."
    )
    allow_paths_outside_image_root: bool = Field(
        False, description="Accept image paths that lead out of image_root.", json_schema_extra=NEEDS_CONSENT
    )
    on_bad_sample: Literal["raise", "skip"] = Field(
        "raise", description="A row or document that cannot be used stops the run, or is skipped and listed."
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The run stops above this share of rows that are bad or lack documents.",
        json_schema_extra=only_with("on_bad_sample", "skip"),
    )
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="Images with more pixels are refused (decompression bombs)."
    )
    num_hard_negatives: int | None = Field(
        None,
        ge=0,
        description="Explicit negatives used per row, drawn anew each epoch; default: all of them.",
        json_schema_extra=COMMON,
    )
    query_image_as_negative: bool = Field(
        False, description="The picture of a composed query (m2i) is a negative of the query; it is not what was asked."
    )
    augment: Literal["none", "light", "strong"] = Field(
        "none", description="Random change of training images.", json_schema_extra=COMMON
    )
    image_host_cache: Literal["uint8", "encoded"] = Field(
        "uint8",
        description="What is held of a batch's images: pixels as the model reads them, or files, decoded per chunk.",
    )
    num_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        "auto", description="Processes that decode rows; auto: 0 on CPU, else up to 8."
    )
