"""The options under ``specproof`` in ``--additional-config``, validated in one place."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# This module is read in every vLLM process, before a CPU worker registers its kernels; that walk
# over all modules fails once llvmlite is loaded (vLLM 0.32). So nothing here may import numba, and
# the table's own limits are repeated; a test holds the two together.
SECTION = "specproof"
MAX_ORDER = 8
MAX_ENTRIES = 32
MAX_EMITTED_WEIGHT = 1000
MAX_DRAFT_LENGTH = 128  # vLLM's MAX_SPEC_LEN
MAX_MINUTES = 60 * 24 * 365
MAX_CACHED_REQUESTS = 2**31 - 1
MAX_CANDIDATES = 16
Rule = Literal[
    "token", "block", "match", "kseq", "rrs", "rrs_without_replacement", "top_plus_one",
    "sparse_optimal",
]  # fmt: skip
Member = Literal["stand", "prompt_lookup", "suffix", "token_recycling", "aded"]


class ConfigurationError(ValueError):
    """A setting that cannot be served; its text is one sentence for the person who made it."""


class Options(BaseModel):
    """What a user can choose beside ``--speculative-config``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rule: Rule | None = Field(
        None,
        description="verification rule; block for one candidate, the drafting's own for several",
    )
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = Field(
        None, description="paths verified in one forward; 1 for Stand, 8 for SpecTr"
    )
    drafting: Literal["iid", "without_replacement", "top_plus_one", "beam"] | None = Field(
        None, description="how several candidates are drawn; top_plus_one, or the rule's own"
    )
    branching: Literal["adaptive", "root"] | None = Field(
        None,
        description="where without_replacement and top_plus_one spend their paths: adaptive, by "
        "the laws of the nodes (default), or all at the root, a chain behind each",
    )
    shape: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file with the shape of Stand's tree, as specproof tune-tree writes it"
    )
    order: Annotated[int, Field(ge=1, le=MAX_ORDER)] = Field(
        6, description="longest context of the STAND table, in tokens"
    )
    table_mib: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        256, description="memory of the STAND table, in MiB"
    )
    table_path: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file that the STAND table is read from and saved to"
    )
    table_save_minutes: Annotated[float, Field(ge=0, le=MAX_MINUTES)] = Field(
        5, description="time between two saves of the STAND table; 0 saves it only at the end"
    )
    entries: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = Field(
        10, description="tokens that the STAND table keeps of each context's law"
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="factor on a context's count before each visit"
    )
    count_cap: Annotated[float, Field(ge=0)] | None = Field(
        None, description="upper bound on a context's count, so that old text fades"
    )
    emitted_weight: Annotated[float, Field(ge=0, le=MAX_EMITTED_WEIGHT)] = Field(
        0.7, description="extra weight of the token that a row emitted, times 1 - temperature"
    )
    length: Literal["threshold", "fixed"] = Field(
        "threshold",
        description="how many drafts of num_speculative_tokens are verified: those that are "
        "expected to save more time than they take (threshold), or all (fixed)",
    )
    h: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="SpecDec++'s rule instead of the achieved rate: a draft is verified while it "
        "or one before it is refused with less than this probability",
    )
    step_times_path: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file of specproof profile with the step times to begin with"
    )
    prompt_visits: bool = Field(True, description="whether prompts enter the STAND table")
    min_survival: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        description="a STAND chain ends where its next token is less likely to be reached; with "
        "length threshold 0 unless it is given",
    )
    interpolation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="how much a context's law is mixed with those of shorter ones"
    )
    longest_match: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="longest suffix that PromptLookup matches, in tokens"
    )
    shortest_match: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="shortest suffix that PromptLookup matches, in tokens"
    )
    occurrence: Literal["latest", "earliest"] = Field(
        "latest", description="which place of a match PromptLookup copies from"
    )
    suffix_max_tree_depth: Annotated[int, Field(ge=1, le=4096)] = Field(
        24, description="depth of Suffix's trees, in tokens"
    )
    suffix_max_spec_factor: Annotated[float, Field(ge=0, le=4096)] = Field(
        1.0, description="tokens that Suffix drafts for each token matched"
    )
    suffix_min_token_prob: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="least probability, by Suffix's own estimate, of a drafted token"
    )
    suffix_max_cached_requests: Annotated[int, Field(ge=0, le=MAX_CACHED_REQUESTS)] = Field(
        10_000, description="answers that Suffix remembers"
    )
    search_rounds: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="walks of Aded's search for each draft"
    )
    exploration: Annotated[float, Field(ge=0, le=100)] = Field(
        1.25, description="weight of exploration in Aded's search"
    )
    members: Annotated[list[Member], Field(min_length=1)] = Field(
        ["stand", "prompt_lookup"], description="drafters of Chooser, the reference first"
    )


def read_options(additional_config: object) -> Options:
    """The options of a server from its ``additional_config``.

    Raises
    ------
    ConfigurationError
        One sentence that names the key, what was given and what is allowed.
    """
    section: Any = {}
    if isinstance(additional_config, Mapping):
        section = additional_config.get(SECTION, {})
    if not isinstance(section, Mapping):
        raise ConfigurationError(
            f"--additional-config: {SECTION!r} must hold an object of options, "
            f"but {section!r} was given"
        )
    try:
        options = Options.model_validate(dict(section))
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None
    if options.shortest_match > options.longest_match:
        raise ConfigurationError(
            f"--additional-config: {SECTION}.shortest_match is {options.shortest_match}, but must "
            f"not exceed longest_match, which is {options.longest_match}"
        )
    for name in ("h", "step_times_path"):
        if options.length == "fixed" and getattr(options, name) is not None:
            raise ConfigurationError(
                f"--additional-config: {SECTION}.{name} is {getattr(options, name)!r}, which has "
                "no effect with length 'fixed'; drop one of them"
            )
    if options.h is not None and options.step_times_path is not None:
        raise ConfigurationError(
            f"--additional-config: {SECTION}.step_times_path has no effect with h, which looks at "
            "no times; drop one of them"
        )
    if len(set(options.members)) < len(options.members):
        raise ConfigurationError(
            f"--additional-config: {SECTION}.members is {options.members}, but must name each "
            "drafter once"
        )
    return options


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(Options.model_fields))
        return f"--additional-config: {SECTION} has no option {key!r}; its options are {known}"
    allowed = first["msg"][:1].lower() + first["msg"][1:]
    return f"--additional-config: {SECTION}.{key} is {first['input']!r}, but {allowed}"
