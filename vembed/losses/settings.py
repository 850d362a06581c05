"""Settings of the training objective: what all losses share, and one section of options per loss."""

from typing import Annotated, Literal

from pydantic import Field

from vembed.utils.settings import COMMON, Section, instead_of, only_with

Direction = Literal["both", "query_to_document", "document_to_query"]


class LossSettings(Section):
    """Which loss, and what every loss shares."""

    loss_type: str = Field(
        "infonce", description="Name of the loss; docs/losses.md says which fits your data.", json_schema_extra=COMMON
    )
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="Scores are divided by it; default: the checkpoint's own, else its family's start (mostly 0.05).",
        json_schema_extra=COMMON,
    )
    learn_temperature: bool = Field(
        True, description="Train the temperature (as the log of its inverse, scale kept at most 100)."
    )
    use_mrl: bool = Field(
        False, description="Matryoshka: apply the loss at several widths of the embeddings.", json_schema_extra=COMMON
    )
    mrl_dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Widths that Matryoshka trains; default: the model's width and its halves down to 32.",
    )
    mrl_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (),
        description="Weight of the loss at each of mrl_dims, in their order; default: 1 each.",
    )
    mrl_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Matryoshka over each document's first so many tokens too (late interaction).",
    )
    use_distillation: bool = Field(False, description="Learn from a teacher beside the loss, whichever it is.")
    distillation_type: Literal["kl", "mse", "margin_mse", "cosine"] = Field(
        "kl",
        description="What is to be as the teacher's: each query's distribution over documents (kl), scores (mse),"
        " positives' leads over negatives (margin_mse), or the embeddings themselves (cosine).",
    )
    distillation_alpha: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of distillation in (1 - alpha) * loss + alpha * distillation; 1: distillation alone.",
    )
    distillation_temperature: float = Field(
        1.0,
        gt=0,
        description="Softens both distributions of kl beyond their own temperatures; above 1 is softer.",
        json_schema_extra=only_with("distillation_type", "kl"),
    )
    teacher_model_name: str | None = Field(
        None,
        description="Model (hub id or folder, of any family) that is learned from; default: the scores in the data.",
    )
    teacher_embeddings: bool = Field(
        False,
        description="Learn from the columns query_embedding, positive_embeddings and negative_embeddings of the data.",
        json_schema_extra=instead_of("teacher_model_name"),
    )
    teacher_similarity: Literal["cosine", "dot"] = Field(
        "cosine",
        description="Score of two teacher embeddings of the data.",
        json_schema_extra=only_with("teacher_embeddings", True),
    )
    teacher_temperature: float | None = Field(
        None,
        gt=0,
        description="The teacher's scores are divided by it; default: the model's own, 0.05 for cosines of embeddings"
        " in the data, else 1.",
    )
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Dtype that the teacher's weights are opened and run in; its embeddings are kept in float32.",
        json_schema_extra=only_with("teacher_model_name"),
    )
    teacher_cache_dir: str | None = Field(
        None,
        description="Folder that keeps the teacher's embeddings from run to run; default: vembed in the user's cache.",
        json_schema_extra=only_with("teacher_model_name"),
    )


class InfoNCESettings(Section):
    """Options of InfoNCE."""

    loss_direction: Direction = Field(
        "both", description="Whether queries pick their documents, documents their queries, or both."
    )
    joint_denominator: bool = Field(
        False,
        description="Both directions share one denominator per positive pair.",
        json_schema_extra=only_with("loss_direction", "both"),
    )
    query_to_query: bool = Field(
        False,
        description="Other queries of the batch are negatives of a query too.",
        json_schema_extra=only_with("loss_direction", "both", "query_to_document"),
    )
    document_to_document: bool = Field(
        False,
        description="Other documents of the batch are negatives of a document too.",
        json_schema_extra=only_with("loss_direction", "both", "document_to_query"),
    )
    private_negatives: bool = Field(
        False, description="Explicit negatives stand against the query of their row only, not against the whole batch."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over a positive and its negatives."
    )
    hardness_strength: float | None = Field(
        None, gt=0, description="A negative of score c (before temperature) weighs exp(strength * c); default: all 1."
    )
    hardness_on: Literal["all", "in_batch", "explicit"] = Field(
        "all",
        description="Which negatives hardness_strength weighs.",
        json_schema_extra=only_with("hardness_strength"),
    )
    false_negative_margin: float | None = Field(
        None,
        ge=0,
        description="Leave out negatives of the batch that score above the query's best positive minus this.",
    )
    false_negative_relative_margin: float | None = Field(
        None,
        ge=0,
        description="Leave out negatives of the batch that score above this share below the query's best positive.",
    )
    false_negative_teacher_margin: float | None = Field(
        None,
        ge=0,
        description="Leave out negatives of the batch that the teacher scores above the query's best positive minus"
        " this.",
    )
    false_negative_teacher_relative_margin: float | None = Field(
        None,
        ge=0,
        description="Leave out negatives of the batch that the teacher scores above this share below the query's best"
        " positive.",
    )


class ColBERTSettings(InfoNCESettings):
    """Options of InfoNCE over late interaction."""

    maxsim_reduction: Literal["sum", "mean"] = Field(
        "sum", description="Whether a query's token scores are summed or averaged."
    )


class SupConSettings(Section):
    """Options of SupCon."""

    loss_direction: Direction = Field(
        "both", description="Whether queries pick their documents, documents their queries, or both."
    )


class SigmoidSettings(Section):
    """Options of the sigmoid loss."""

    private_negatives: bool = Field(
        False, description="Explicit negatives stand against the query of their row only, not against the whole batch."
    )


class HardNegativeSettings(Section):
    """Options of the hardest negatives."""

    num_hardest: int = Field(8, ge=1, description="Negatives that each query keeps, the highest-scoring of the batch.")


class TripletSettings(Section):
    """Options of triplets."""

    triplet_mining: Literal["batch_all", "batch_hard", "batch_semi_hard", "explicit"] = Field(
        "batch_hard", description="Which triplets count; explicit: only negatives that rows name."
    )
    margin: float = Field(
        0.2,
        gt=0,
        description="By how much positives must lead their negatives.",
    )
    soft_margin: bool = Field(
        False,
        description="log(1 + exp(difference)) in the place of a margin.",
        json_schema_extra=instead_of("margin"),
    )


class CoSENTSettings(Section):
    """Options of CoSENT."""

    cosent_pairs: Literal["graded", "in_batch"] = Field(
        "graded", description="Compare pairs by the rows' `score`, or all positives of the batch with all negatives."
    )


class ContrastiveSettings(Section):
    """Options of labelled pairs."""

    margin: float = Field(0.5, gt=0, description="Cosine distance that pairs of label 0 need at least.")


class MarginMSESettings(Section):
    """Nothing to set."""


class PreferenceSettings(Section):
    """Options of preference optimisation."""

    preference_beta: float = Field(
        0.1, gt=0, description="How much a lead over the reference's lead counts; lower: further from the reference."
    )
    preference_label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the preferences that are taken for the wrong way round; at 0.5 neither way is preferred.",
    )
    preference_infonce_weight: float = Field(
        0.0, ge=0, description="Weight of an InfoNCE term, with that loss's defaults, beside the preferences."
    )


class ClassSettings(Section):
    """Options of every loss that learns weights of classes; the section of such a loss is one of these."""

    class_learning_rate: float = Field(
        1e-2, gt=0, le=10, description="AdamW rate of the weights of classes, which start from nothing."
    )

    @property
    def centres_per_class(self) -> int:
        """Weights of each class."""
        return 1


class ArcFaceSettings(ClassSettings):
    """Options of ArcFace."""

    arcface_margin: float = Field(
        0.5, ge=0, lt=3.14, description="Angle in radians by which an item must be nearer to its class than to others."
    )
    class_scale: float = Field(
        30.0, gt=0, description="Cosines to classes are multiplied by it, in place of a temperature."
    )
    sub_centres: int = Field(1, ge=1, description="Centres of each class, of which an item's nearest counts.")

    @property
    def centres_per_class(self) -> int:
        """Weights of each class."""
        return self.sub_centres


class ProxyAnchorSettings(ClassSettings):
    """Options of Proxy-Anchor."""

    proxy_margin: float = Field(
        0.1, ge=0, lt=1, description="Cosine that items of a class are wanted above, and others as far below 0."
    )
    class_scale: float = Field(
        32.0, gt=0, description="Cosines to classes are multiplied by it, in place of a temperature."
    )
