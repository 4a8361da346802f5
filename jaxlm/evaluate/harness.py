"""Scores a model on tasks of lm-evaluation-harness (extra: eval), from files that are on this machine.

Nothing is fetched unless asked for, and no code runs that a task file names (jaxlm.evaluate.harness_tasks). Templates
of prompts are Jinja, in which lm-eval lets a file call Python; here they are rendered in Jinja's sandbox.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.evaluate import harness_tasks
from jaxlm.evaluate.standard_errors import of_ratio
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.evaluate.harness_model import JaxlmLM

BOOTSTRAP_ITERS = 1000
"""Draws for metrics without a closed form (F1, BLEU, ...); lm-eval itself takes 100,000, for minutes."""
SEED = 1234
"""Of the examples that are shown, as lm-eval has it."""
DOWNLOAD = "--allow-download"


@dataclass(frozen=True)
class TaskOptions:
    """What is asked, and how."""

    names: Sequence[str]
    task_path: str | None = None
    num_fewshot: int | None = None
    """Examples before each question; None: as the task says."""
    limit: int | None = None
    """Documents of each task at most, from its beginning."""
    apply_chat_template: bool = False
    gen_kwargs: Mapping[str, Any] | None = None
    """Laid over those of the tasks."""
    allow_download: bool = False
    trust_task_code: bool = False


def require() -> None:
    """Raises UserError where lm-eval is missing."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: its bars would fill a log
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Tasks of lm-evaluation-harness need lm-eval ({error}): pip install 'jaxlm[eval]'."
        ) from None


def set_offline(offline: bool) -> None:
    """Whether the hub of Hugging Face is left alone by this process; to be called before lm-eval is imported."""
    if not offline:
        return
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    # They read the environment when they are imported, which may have been before.
    for module, names in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE",)),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        if module in sys.modules:
            for name in names:
                setattr(sys.modules[module], name, True)


def sandbox_templates() -> None:
    """Puts Jinja's sandbox in the place of lm-eval's environment: `{{ ''.__class__ }}` and what follows is refused."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if isinstance(utils.env, SandboxedEnvironment):
        return
    env = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    env.filters.update(utils.env.filters)
    utils.env = env


def quiet() -> None:
    """lm-eval and datasets say at length what they do; errors are still said."""
    import datasets

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def list_tasks(task_path: str | None) -> list[str]:
    """Names of all tasks, groups and tags there are: the user's own first."""
    own = sorted(harness_tasks.read_folder(task_path)) if task_path else []
    known = harness_tasks.package_index(harness_tasks.package_folder())
    return own + sorted(name for name in known if name not in own)


@contextlib.contextmanager
def opened_tasks(options: TaskOptions) -> Iterator[tuple[list[Any], Any]]:
    """(lm-eval's Task and Group objects, its TaskManager) with their data.

    Errors: UserError for an unknown name, code that nobody trusts, and data that is not on this machine.
    """
    require()
    set_offline(not options.allow_download)
    from lm_eval.tasks import TaskManager

    sandbox_templates()
    quiet()
    own: dict[str, harness_tasks.TaskFile] = {}
    if options.task_path is not None:
        own = harness_tasks.read_folder(options.task_path, trusted=options.trust_task_code)
    package = harness_tasks.package_folder()
    # Nothing but the user's own is looked at as long as that is enough.
    known = {} if all(name in own for name in options.names) else harness_tasks.package_index(package)
    chosen = [name for group in harness_tasks.pick(options.names, own, known) for name in group]
    needed = harness_tasks.with_members(chosen, own, known)
    mine = [own[name] for name in needed if name in own]
    if not options.trust_task_code:
        check_code(mine, options)
    with tempfile.TemporaryDirectory(prefix="jaxlm-tasks-") as folder:
        paths: list[str | Path] = list(
            harness_tasks.package_folders([n for n in needed if n not in own], known, package)
        )
        if options.trust_task_code and options.task_path is not None:
            paths.append(options.task_path)
        elif mine:
            harness_tasks.write_plain(mine, Path(folder))
            paths.append(folder)
        manager = TaskManager(include_path=paths, include_defaults=False)
        yield [one for name in chosen for one in load_task(manager, name, options)], manager


def check_code(files: Sequence[harness_tasks.TaskFile], options: TaskOptions) -> None:
    """Errors: UserError for a task of the user's that would run code."""
    from lm_eval.api.registry import metric_registry

    metrics = [str(name) for name in metric_registry]
    for file in files:
        found = harness_tasks.code_of(file, metrics, allow_download=options.allow_download)
        harness_tasks.refuse_code(file, found)


@contextlib.contextmanager
def template_errors() -> Iterator[None]:
    """Names a template that is none, that misses a field, or that the sandbox stops."""
    from jinja2.exceptions import TemplateError

    try:
        yield
    except TemplateError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"A template of a task cannot be filled in ({type(error).__name__}: {reason}). Templates may use the "
            "fields of a record, and nothing of Python behind them."
        ) from None


def load_task(manager: Any, name: str, options: TaskOptions) -> list[Any]:
    """Opens a task with its data: lm-eval's objects (a tag stands for several)."""
    from datasets.exceptions import DatasetsError

    try:
        with template_errors():
            loaded = manager.load([name])
    except UserError:
        raise
    except (DatasetsError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        way_out = (
            "Check dataset_path and dataset_kwargs in its YAML."
            if options.allow_download
            else f"Fetch it once with {DOWNLOAD}, or name local files in the YAML of a task of your own (dataset_path: "
            "json, dataset_kwargs: {data_files: ...})."
        )
        raise UserError(f"The data of task {name} is not on this machine ({reason}). {way_out}") from None
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"lm-eval cannot open the task {name} ({type(error).__name__}: {reason}).") from error
    groups = loaded.get("groups") or {}
    if name in groups:
        return [groups[name]]
    return list(loaded["tasks"].values())


def evaluate_tasks(lm: JaxlmLM, options: TaskOptions) -> dict[str, Any]:
    """lm-eval's results, its samples among them, with a standard error for every metric that can have one.

    Errors: UserError as of `opened_tasks`, and for a task that marks itself as running programs of the model.
    """
    with opened_tasks(options) as (tasks, manager):
        from lm_eval.evaluator import simple_evaluate

        refuse_unsafe(tasks, options)
        if not options.apply_chat_template:
            lm_template: bool | str = False
        else:
            lm_template = True
            lm.chat_template(True)  # says now that there is none
        with template_errors():
            found = simple_evaluate(
                model=lm,
                tasks=tasks,
                task_manager=manager,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                batch_size=lm.batch_size,
                bootstrap_iters=BOOTSTRAP_ITERS,
                apply_chat_template=lm_template,
                gen_kwargs=dict(options.gen_kwargs) if options.gen_kwargs else None,
                fewshot_random_seed=SEED,
                confirm_run_unsafe_code=options.trust_task_code,
                log_samples=True,
            )
    assert found is not None
    results = json.loads(json.dumps(dict(found), default=str))
    add_ratio_errors(results)
    results["num_truncated"] = lm.num_truncated
    return results


def leaves(tasks: Sequence[Any]) -> Iterator[Any]:
    """The tasks of groups, and tasks."""
    for one in tasks:
        if hasattr(one, "get_all_tasks"):
            yield from one.get_all_tasks()
        else:
            yield one


def refuse_unsafe(tasks: Sequence[Any], options: TaskOptions) -> None:
    """Errors: UserError for a task, of lm-eval's too, that runs the programs that the model writes."""
    for task in leaves(tasks):
        if getattr(task, "UNSAFE_CODE", False) and not options.trust_task_code:
            name = getattr(getattr(task, "config", None), "task", type(task).__name__)
            raise UserError(
                f"--tasks={name} runs the programs that the model writes, on this machine. Where that does no harm (a "
                f"container without a network), give {harness_tasks.TRUST}."
            )


def add_ratio_errors(results: dict[str, Any]) -> None:
    """Standard errors of perplexities and bits per byte, by document, where lm-eval has none ("N/A")."""
    for task, metrics in results["results"].items():
        for key in list(metrics):
            name, _, rule = key.partition(",")
            if f"{name}_stderr,{rule}" not in metrics or metrics[f"{name}_stderr,{rule}"] not in (
                "N/A",
                None,
            ):
                continue
            samples = [s for s in results.get("samples", {}).get(task, []) if s.get("filter") == rule]
            pairs = [s[name] for s in samples if isinstance(s.get(name), list) and len(s[name]) == 2]
            if len(pairs) != len(samples) or not pairs:
                continue
            error = of_ratio([p[0] for p in pairs], [p[1] for p in pairs])
            if error is not None:
                scale = 1 / math.log(2) if name.startswith("bits") else metrics[key]
                metrics[f"{name}_stderr,{rule}"] = error * scale


def rows_of(results: Mapping[str, Any]) -> Iterator[tuple[str, int | None, str, str, float, float | None]]:
    """(task, examples shown, filter, metric, value, standard error or None) of all that was measured."""
    shots = results.get("n-shot", {})
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        for key, value in metrics.items():
            name, comma, rule = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{name}_stderr,{rule}")
            yield task, shots.get(task), rule, name, value, error if isinstance(error, int | float) else None
