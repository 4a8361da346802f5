"""jaxlm/config.py: dataclass sections <-> ConfigDict and JSON."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from jaxlm import config
from jaxlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Leaf:
    path: str = ""
    """Where it is."""
    weight: float = 1.0
    limit: float | None = None

    def __post_init__(self):
        if not self.path:
            raise UserError("root.leaves.<name>.path is empty.")


@dataclasses.dataclass(frozen=True)
class Section:
    num_layers: int = 4
    rate: float = 0.5
    flag: bool = False
    name: str | None = None
    width: int | None = 3
    """Of a layer.

    Unset: none.
    """


@dataclasses.dataclass(frozen=True)
class Root:
    seed: int = 0
    section: Section = dataclasses.field(default_factory=Section)
    leaves: dict[str, Leaf] = dataclasses.field(default_factory=dict)


FULL = Root(
    seed=2**40,
    section=Section(num_layers=7, rate=1e-30, flag=True, name="größe\n", width=None),
    leaves={"b": Leaf("/b", 0.1), "a": Leaf("/a", 0.2, 3.0)},
)


@pytest.mark.parametrize("root", [Root(), FULL])
def test_a_config_dict_becomes_the_dataclass_it_came_from(root):
    assert config.from_config_dict(Root, config.to_config_dict(root)) == root


def test_a_saved_config_loads_as_it_was(tmp_path):
    (tmp_path / "config.json").write_text(config.to_json(FULL))
    assert config.load_section(Root, tmp_path / "config.json") == FULL


def test_a_saved_config_is_text_one_can_read_in_declared_order():
    assert config.to_json(Root()).splitlines()[1:4] == [
        '  "seed": 0,',
        '  "section": {',
        '    "num_layers": 4,',
    ]


def test_a_saved_config_of_an_older_version_takes_defaults_for_newer_keys(tmp_path):
    (tmp_path / "old.json").write_text('{"section": {"num_layers": 9}}')
    assert config.load_section(Root, tmp_path / "old.json") == Root(section=Section(num_layers=9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sed": 1}', r"old\.json: Unknown config key sed; did you mean seed\?"),
        ('{"seed": ', r"old\.json is not a saved config: "),
        ("[1]", r"old\.json is not a saved config: it holds list"),
        ('{"section": 3}', r"old\.json: section=3 must be a section"),
        ('{"leaves": {"a": 3}}', r"old\.json: leaves\.a=3 must be a dict with keys path, weight, limit\."),
        ('{"seed": NaN}', r"seed=nan must be a whole number \(int\), not float"),
    ],
)
def test_a_broken_saved_config_is_named(tmp_path, text, message):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load_section(Root, tmp_path / "old.json")


def test_a_missing_saved_config_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no saved config here"):
        config.load_section(Root, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 4.0}, "section.num_layers=4.0 must be a whole number (int), not float."),
        ({"num_layers": True}, "section.num_layers=True must be a whole number (int), not bool."),
        (
            {"num_layers": None},
            "section.num_layers=None must be a whole number (int): this key cannot be unset.",
        ),
        ({"rate": "1e-3"}, "section.rate='1e-3' must be a number (float), not str."),
        ({"rate": True}, "section.rate=True must be a number (float), not bool."),
        ({"rate": float("inf")}, "section.rate=inf must be a finite number."),
        ({"flag": 1}, "section.flag=1 must be true or false (bool), not int."),
        ({"name": 3}, "section.name=3 must be text (str), not int."),
        ({"num_layer": 3}, "Unknown config key section.num_layer; did you mean section.num_layers?"),
        ({"seed": 3}, "Unknown config key section.seed; did you mean seed?"),
        ({"zzz": 3}, "Unknown config key section.zzz; `jaxlm config --keys` lists all keys."),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_type(values, message):
    with pytest.raises(UserError) as caught:
        config.from_config_dict(Root, {"section": values})
    assert str(caught.value) == message


def test_an_int_serves_as_a_float():
    rate = config.from_config_dict(Root, {"section": {"rate": 1}}).section.rate
    assert rate == 1.0
    assert type(rate) is float


def test_an_error_of_an_entry_names_the_entry():
    with pytest.raises(UserError, match=r"^root\.leaves\.mine\.path is empty\.$"):
        config.from_config_dict(Root, {"leaves": {"mine": {}}})


def test_entries_come_out_in_one_order_however_they_were_written():
    one = config.from_config_dict(Root, {"leaves": {"b": {"path": "x"}, "a": {"path": "y"}}})
    two = config.from_config_dict(Root, {"leaves": {"a": {"path": "y"}, "b": {"path": "x"}}})
    assert list(one.leaves) == list(two.leaves) == ["a", "b"]


@pytest.mark.parametrize("name", ["my-text", "class", "items", "a b", "1st", ""])
def test_a_name_that_no_flag_could_reach_is_refused(name):
    with pytest.raises(UserError, match="cannot be a name here"):
        config.from_config_dict(Root, {"leaves": {name: {"path": "x"}}})


def test_the_config_dict_is_locked_but_open_to_entries():
    root = config.to_config_dict(Root())
    with pytest.raises(AttributeError, match="num_layers"):
        root.section.num_layer = 3
    root.leaves.mine = {"path": "x"}
    assert config.from_config_dict(Root, root).leaves == {"mine": Leaf("x")}


def test_an_optional_key_keeps_its_type_while_unset():
    root = config.to_config_dict(Root(section=Section(width=None)))
    with pytest.raises(TypeError):
        root.section.width = "wide"
    root.section.width = 5
    root.section.width = None
    root.section.width = 6
    assert config.from_config_dict(Root, root).section.width == 6


def test_complete_keeps_references_between_keys():
    root = ConfigDict({"seed": 3})
    root.section = ConfigDict({"num_layers": root.get_ref("seed") * 2})
    config.complete(root, Root)
    root.seed = 5
    assert config.from_config_dict(Root, root) == Root(seed=5, section=Section(num_layers=10))


def test_diff_lists_what_differs_and_only_that():
    a = Root(section=Section(width=None), leaves={"x": Leaf("/x")})
    b = Root(section=Section(num_layers=5, width=None))
    assert config.diff(a, a) == []
    assert config.diff(a, b) == [
        ("section.num_layers", 4, 5),
        ("leaves.x.path", "/x", config.ABSENT),
        ("leaves.x.weight", 1.0, config.ABSENT),
        ("leaves.x.limit", None, config.ABSENT),
    ]
    assert config.diff(b, a)[1] == ("leaves.x.path", config.ABSENT, "/x")


def test_diff_reads_config_dicts_and_saved_dicts_alike():
    assert config.diff(FULL, config.to_config_dict(FULL)) == config.diff(dataclasses.asdict(FULL), FULL) == []


def test_keys_come_with_type_default_and_the_string_under_the_field():
    keys = {key.name: key for key in config.iterate_keys(Root)}
    assert list(keys) == list(config.key_names(Root))
    assert keys["section.width"].doc == "Of a layer. Unset: none."
    assert keys["section.width"].default == 3
    assert keys["section.width"].spec == config.Spec(int, optional=True)
    assert keys["leaves.<name>.path"].doc == "Where it is."
    assert keys["leaves.<name>.weight"].doc == ""


def test_a_field_of_a_type_no_flag_can_set_is_a_bug_found_at_once():
    @dataclasses.dataclass(frozen=True)
    class Bad:
        sizes: tuple[int, ...] = ()

    with pytest.raises(TypeError, match="cannot be tuple"):
        config.specs(Bad)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("model.num_layer", "model.num_layers"),
        ("seq_len", "data.seq_len"),
        ("model.seq_len", "data.seq_len"),
        ("trian.num_steps", "train.num_steps"),
        ("model.batches", "train.batch"),
        ("qqq", None),
    ],
)
def test_nearest_key(key, match):
    known = [
        "model.num_layers",
        "model.num_heads",
        "data.seq_len",
        "train.num_steps",
        "eval.num_steps",
        "train.batch",
    ]
    assert config.nearest_key(key, known) == match


def test_check_choice_names_the_choices_and_the_nearest():
    config.check_choice("model.norm", "layernorm", ("rmsnorm", "layernorm"))
    with pytest.raises(UserError) as caught:
        config.check_choice("model.norm", "rmsnrm", ("rmsnorm", "layernorm"))
    assert str(caught.value) == (
        "model.norm='rmsnrm' is not one of rmsnorm, layernorm; did you mean 'rmsnorm'?"
    )
    with pytest.raises(UserError, match="'q' is not one of rmsnorm, layernorm.$"):
        config.check_choice("model.norm", "q", ("rmsnorm", "layernorm"))


def test_divisors():
    assert config.divisors(12) == [1, 2, 3, 4, 6, 12]
    assert config.divisors(1) == [1]
