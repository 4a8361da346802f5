"""jaxlm/config_flags.py: --config=FILE and --config.key=value."""

import functools
import os
from pathlib import Path

import pytest

from jaxlm import config_flags
from jaxlm.config import flatten, iterate_keys, to_json
from jaxlm.run import RunConfig, parse, resolve
from jaxlm.types import UserError

REPOSITORY = Path(__file__).parent.parent
SMALL = f"--config={Path(__file__).parent}/small_config.py"
KEYS = list(iterate_keys(RunConfig))
VALUES = {int: ("7", 7), float: ("0.625", 0.625), bool: ("true", True), str: ("some text=1", "some text=1")}


@pytest.fixture
def write(tmp_path):
    """Writes a config file whose get_config starts from the defaults, and returns its path."""

    def write(*lines, returns="cfg"):
        body = "".join(f"    {line}\n" for line in (*lines, f"return {returns}"))
        path = tmp_path / "mine.py"
        path.write_text(f"from jaxlm import run\n\ndef get_config():\n    cfg = run.default_config()\n{body}")
        return str(path)

    return write


def refused(*argv):
    with pytest.raises(UserError) as caught:
        resolve(parse(list(argv)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@functools.cache
def small():
    """key -> value, of the config without a flag."""
    return flatten(parse([SMALL]))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_can_be_set_by_a_flag(key):
    name = key.name.replace("<name>", "topics")
    text, value = VALUES[key.spec.type]
    if value == key.default:
        text, value = "false", False
    before = small()
    for argv in ([f"--config.{name}={text}"], [f"--config.{name}", text]):
        after = flatten(parse([SMALL, *argv]))
        assert after[name] == value
        assert type(after[name]) is key.spec.type
        assert {k: v for k, v in after.items() if k != name} == {k: v for k, v in before.items() if k != name}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_optional_keys_and_no_others_can_be_unset_and_set_again(key):
    name = key.name.replace("<name>", "topics")
    text, value = VALUES[key.spec.type]
    argv = [SMALL, f"--config.{name}={text}", f"--config.{name}=None"]
    if key.spec.optional:
        assert flatten(parse(argv))[name] is None
        assert flatten(parse([*argv, f"--config.{name}={text}"]))[name] == value
    else:
        assert f"--config.{name}=None must be" in refused(*argv)


@pytest.mark.parametrize("key", [key for key in KEYS if key.spec.type is not str], ids=lambda key: key.name)
def test_a_value_of_the_wrong_type_is_refused_by_key_value_and_type(key):
    name = key.name.replace("<name>", "topics")
    message = refused(SMALL, f"--config.{name}=ten")
    assert message.startswith(f"--config.{name}=ten must be ")
    assert key.spec.type.__name__ in message


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_typo_is_answered_with_the_key_that_was_meant(key):  # pain 24
    name = key.name.replace("<name>", "topics")
    section, dot, field = name.rpartition(".")
    typo = f"{section}{dot}{field[:-1]}{field[-1] * 2}"
    assert refused(SMALL, f"--config.{typo}=1") == (f"Unknown config key {typo}; did you mean {name}?")


def test_a_boolean_needs_no_value_and_knows_no():
    assert parse([SMALL, "--config.model.qk_norm"]).model.qk_norm is True
    assert parse([SMALL, "--noconfig.model.scan_layers"]).model.scan_layers is False
    assert "needs a value" in refused(SMALL, "--config.train.num_steps")


def test_the_last_flag_for_a_key_wins_and_flags_may_stand_before_the_file():
    cfg = parse(["--config.seed=1", SMALL, "--config.seed=2"])
    assert cfg.seed == 2


def test_negative_numbers_are_values():
    cfg = parse([SMALL, "--config.mesh.data", "-1", "--config.mesh.fsdp", "1"])
    assert (cfg.mesh.data, cfg.mesh.fsdp) == (-1, 1)


@pytest.mark.parametrize(
    ("argv", "config_argv", "rest"),
    [
        (["--workdir=x", "--config=a"], ["--config=a"], ["--workdir=x"]),
        (["--config", "a", "b"], ["--config=a"], ["b"]),
        (["--config.a.b", "-3", "-v"], ["--config.a.b=-3"], ["-v"]),
        (["--config.a", "--json"], ["--config.a"], ["--json"]),
        (["-config.a=x y=z", "--noconfig.b", "c"], ["-config.a=x y=z", "--noconfig.b"], ["c"]),
        (["--configs=a", "--", "--config=b"], [], ["--configs=a", "--", "--config=b"]),
        (["--prompt", "line\nline"], [], ["--prompt", "line\nline"]),
        (["--config.a=line\nline"], ["--config.a=line\nline"], []),
    ],
)
def test_config_flags_are_split_from_the_others(argv, config_argv, rest):
    assert config_flags.split_config_flags(argv) == (config_argv, rest)


def test_a_source_can_be_added_dropped_and_replaced_by_flags():
    mine = ["--config.data.sources.mine.weight_tokens=2", "--config.data.sources.mine.path=/x.txt"]
    added = resolve(parse([SMALL, *mine])).data.sources
    assert list(added) == ["docstrings", "licences", "mine", "topics"]
    assert (added["mine"].path, added["mine"].weight_tokens, added["mine"].text_key) == (
        "/x.txt",
        2.0,
        "text",
    )
    dropped = resolve(parse([SMALL, "--config.data.sources.topics=None"])).data.sources
    assert list(dropped) == ["docstrings", "licences"]
    replaced = resolve(parse([SMALL, "--config.data.sources=None", *mine])).data.sources
    assert replaced == {"mine": added["mine"]}
    assert "mine" not in parse([SMALL, *mine, "--config.data.sources.mine=None"]).data.sources


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.sources.topis.weight_tokens=1", "did you mean data.sources.topics.weight_tokens?"),
        ("data.sources.topis=None", "data.sources has no topis; did you mean topics?"),
        ("data.sources.mine.weight_tokens=1", "To add it, also set --config.data.sources.mine.path=..."),
        ("data.sources.mine.pth=x", "data.sources.mine.pth; did you mean data.sources.mine.path?"),
        ("data.sources.mine=x", "data.sources.mine; did you mean data.sources.mine.path?"),
        ("data.sources.mine.weigt_token=1", "did you mean data.sources.mine.weight_tokens?"),
        ("data.sources.mine.zzz=1", "; data.sources.mine has path, weight_tokens, "),
        ("data.sources.topics.zzz=1", "; data.sources.topics has path, weight_tokens, "),
        ("data.sources.topics.seq_len=1", "did you mean data.seq_len?"),
        ("data.source.mine.path=x", "did you mean data.sources.mine.path?"),
        ("sources.topis.pth=x", "did you mean data.sources.topics.path?"),
        ("data.sources..path=x", "'' cannot be a name here"),
        ("data.sources.=x", "'' cannot be a name here"),
        ("data.sources.my-text.path=x", "'my-text' cannot be a name here"),
        ("data.sources.topics=3", "is a section, not a key: it holds data.sources.topics.path, "),
        (
            "data.sources.topics.weight_tokens=-1",
            "data.sources.topics.weight_tokens=-1.0 must not be negative.",
        ),
        ("data.sources=None", "data.sources is empty: "),
        ("model=3", "--config.model is a section, not a key: it holds model.vocab_size, "),
        ("train.num_steps=1e3", "--config.train.num_steps=1e3 must be a whole number (int). Try 1000."),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan must be a finite number."),
        ("seed.x=1", "Unknown config key seed.x"),
        ("=3", "'--config.=3' is not a config flag"),
    ],
)
def test_mistakes_in_flags_are_one_line_with_a_way_out(flag, message):
    assert message in refused(SMALL, f"--config.{flag}")


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_a_named_config_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_flags.find_config(name) == REPOSITORY / "configs" / "quickstart.py"


def test_a_file_as_given_comes_before_a_named_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("configs")
    Path("configs/quickstart.py").write_text("def get_config():\n    return {'seed': 77}\n")
    assert parse(["--config=configs/quickstart.py"]).seed == 77
    assert parse(["--config=quickstart"]).seed == 0


def test_a_missing_config_lists_those_that_exist_and_the_nearest():
    message = refused("--config=quikstart")
    assert message.startswith("--config=quikstart: no such config. Did you mean quickstart? Known: ")
    assert all(name in message for name in config_flags.config_names())
    assert "quickstart" in config_flags.config_names()


def test_a_broken_saved_config_is_named_with_what_to_give_instead(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is not valid JSON" in refused(f"--config={tmp_path}/")
    assert "a workdir whose config.json is whole" in refused(f"--config={tmp_path}/")


def test_a_config_in_a_folder_that_may_not_be_searched_is_no_such_config(monkeypatch):
    def is_file(path):
        if path.parts[1] == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return os.path.isfile(path)

    monkeypatch.setattr(Path, "is_file", is_file)  # what pathlib does there
    assert refused("--config=/locked/mine.py").startswith("--config=/locked/mine.py: no such config.")


def test_config_is_needed_and_only_once():
    assert refused("--config.seed=1").startswith("--config=NAME is needed: one of ")
    assert refused("--config=a", "--config=b").startswith("--config is given twice: a and b.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cfg.model.num_layer = 3", "Unknown config key model.num_layer; did you mean model.num_layers?"),
        ("m = cfg.model; m.num_layr = 3", "Unknown config key num_layr; did you mean model.num_layers?"),
        (
            "cfg.seed = cfg.model.num_layr",
            "Unknown config key model.num_layr; did you mean model.num_layers?",
        ),
        ("cfg.train.num_steps = 10.0", "train.num_steps=10.0 must be a whole number (int), not float."),
        ("cfg.optimizer.b1 = '0.9'", "optimizer.b1=0.9 must be a number (float), not str."),
        ("cfg.model = 3", "model=3 must be a section, not int."),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 1", "SyntaxError: invalid syntax"),
    ],
)
def test_an_error_in_a_config_file_names_file_and_line(write, line, message):
    path = write(line)
    assert refused(f"--config={path}").startswith(f"{path}, line 5: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cfg.unlock(); cfg.sed = 3", "Unknown config key sed; did you mean seed?"),
        (
            "cfg.unlock(); cfg.model.seq_len = 3",
            "Unknown config key model.seq_len; did you mean data.seq_len?",
        ),
        ("cfg.train.num_steps = True", "train.num_steps=True must be a whole number (int), not bool."),
        ("cfg.data.sources.a = 'x'", "data.sources.a='x' must be a dict with keys path, "),
        ("cfg.data.sources.a = {'pth': 'x'}", "Unknown config key data.sources.a.pth; did you mean "),
    ],
)
def test_what_a_config_file_returns_is_checked(write, line, message):
    path = write(line)
    assert refused(f"--config={path}").startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 3\n", "has no function get_config()"),
        ("def get_config():\n    pass\n", "get_config() must return a ConfigDict, not NoneType."),
        ("def get_config(size):\n    return {}\n", "get_config() needs an argument. Try --config="),
    ],
)
def test_a_file_without_a_usable_get_config_is_refused(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    assert message in refused(f"--config={tmp_path}/mine.py")


def test_an_argument_goes_to_get_config(tmp_path, write):
    (tmp_path / "sized.py").write_text("def get_config(size):\n    return {'init_from': size}\n")
    assert parse([f"--config={tmp_path}/sized.py:big:2"]).init_from == "big:2"
    assert "get_config() takes no argument" in refused(f"--config={write()}:big")


def test_a_plain_dict_gets_all_keys_and_their_types(tmp_path):
    plain = {
        "optimizer": {"clip_norm": None, "b1": 0},
        "data": {"sources": {"a": {"path": "x", "weight_tokens": 1}}},
    }
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {plain}\n")
    flags = ["optimizer.clip_norm=0.5", "optimizer.b1=0.25", "data.sources.a.weight_tokens=.5", "seed=3"]
    cfg = resolve(parse([f"--config={tmp_path}/mine.py", *(f"--config.{flag}" for flag in flags)]))
    assert (cfg.optimizer.clip_norm, cfg.optimizer.b1, cfg.seed) == (0.5, 0.25, 3)
    assert cfg.data.sources["a"].weight_tokens == 0.5


def test_references_in_a_config_file_follow_flags(write):
    path = write("cfg.optimizer.warmup_steps = cfg.train.get_ref('num_steps') // 10")
    assert parse([f"--config={path}", "--config.train.num_steps=500"]).optimizer.warmup_steps == 50


def test_a_saved_config_and_the_workdir_that_holds_it_are_configs(tmp_path):
    cfg = resolve(parse([SMALL, "--config.optimizer.clip_norm=None"]))
    (tmp_path / config_flags.CONFIG_FILE).write_text(to_json(cfg))
    for name in (tmp_path, tmp_path / config_flags.CONFIG_FILE):
        assert resolve(parse([f"--config={name}"])) == cfg
        assert parse([f"--config={name}", "--config.optimizer.clip_norm=0.5"]).optimizer.clip_norm == 0.5


def test_a_config_leaves_no_trace(write):
    path = Path(write())
    parse([f"--config={path}"])
    assert [p.name for p in path.parent.iterdir()] == ["mine.py"]
