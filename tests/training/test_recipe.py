import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.training.recipe import Recipe

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["mlp", "cnn", "resnet", "plain", None]),
        "widths": st.lists(st.integers(1, 4096), min_size=1, max_size=4).map(tuple),
        "depth": st.sampled_from([8, 14, 20, None]),
        "init": st.sampled_from(["keep", "he_normal", "zeros"]),
        "norm": st.sampled_from(["keep", "none", "batch", "rms"]),
        "dropout": st.floats(0, 1) | st.none(),
        "weight_decay": st.floats(0, 20) | st.none(),
        "clip_norm": st.floats(0, 1e9, exclude_min=True) | st.none(),
        "augment": st.sampled_from(["none", "crop", "crop+flip", "noise+cutout"]),
        "batch_size": st.integers(1, 10_000) | st.just("full"),
        "epochs": st.integers(1, 1000),
        "schedule": st.sampled_from(["constant", "exponential"]),
        "gamma": st.floats(0, 1, exclude_min=True),
        "compile": st.booleans(),
    },
)


@given(SETTINGS)
def test_toml_gives_the_recipe_back(settings):
    recipe = Recipe(**settings)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_toml_names_only_what_differs_from_the_defaults():
    assert Recipe().to_toml() == ""
    assert Recipe(norm="batch").to_toml() == 'norm = "batch"\n'


def test_a_recipe_cannot_be_changed_but_varied():
    recipe = Recipe(norm="batch")
    with pytest.raises(ValueError, match="frozen"):
        recipe.norm = "none"
    assert recipe.varied({"dropout": 0.5, "norm": "layer"}) == Recipe(norm="layer", dropout=0.5)
    assert recipe.norm == "batch"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drpout": 0.1}, "unknown key 'drpout'. Did you mean 'dropout'"),
        ({"norm": "bach"}, "unknown norm 'bach'. Did you mean 'batch'"),
        ({"augment": "crop+flop"}, "unknown augmentation 'flop'. Did you mean 'flip'"),
        ({"dropout": 1.5}, r"dropout must be less than or equal to 1, but got 1.5.*probability of dropping"),
        ({"dropout": True}, "dropout must be a valid number, but got True"),
        ({"dropout": float("nan")}, "dropout must"),
        ({"lr": 0}, "lr must be greater than 0, but got 0"),
        ({"lr": 1e9}, r"lr \* weight_decay must be at most 1, but got '1e\+09 \* 0.01'.*weight_decay=0"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"batch_size": 0}, 'batch_size must be at least 1, or "full", but got 0'),
        ({"batch_size": "ful"}, 'batch_size must be a whole number or "full"'),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"depth": 9}, r"depth must be 6n \+ 2"),
        ({"widths": "128xbig"}, "widths must be a valid integer"),
        ({"widths": "128x0"}, "widths must hold positive whole numbers"),
        ({"widths": ()}, "widths must hold positive whole numbers"),
        ({"gamma": 0}, "gamma must be greater than 0, but got 0"),
        ({"gamma": 1.05}, "gamma must be less than or equal to 1, but got 1.05.*after every epoch"),
        ({"schedule": "exponentially"}, "unknown schedule 'exponentially'. Did you mean 'exponential'"),
        ({"epochs": 0}, "epochs must be greater than or equal to 1"),
        ({"epochs": 5, "warmup_epochs": 6}, r"warmup_epochs must be at most epochs \(5\)"),
        ({"augment": "crop+crop"}, "augment must name each augmentation once"),
        ({"compile": "maybe"}, "compile must be a valid boolean"),
    ],
)
def test_wrong_settings_are_named_with_value_and_cure(settings, message):
    with pytest.raises(InvalidValue, match=message):
        Recipe(**settings)


@pytest.mark.parametrize("key", ["dropout", "clip_norm", "clip_value", "weight_decay", "patience", "model", "lr"])
def test_the_word_none_switches_a_setting_off(key):
    assert getattr(Recipe(**{key: "none"}), key) is None


def test_widths_read_from_one_word():
    assert Recipe(widths="128x64").widths == (128, 64)
    assert Recipe(widths=32).widths == (32,)


def test_what_is_left_open_follows_the_optimizer():
    assert Recipe(optimizer="adamw").decay == 0.01  # torch.optim.AdamW's default
    assert Recipe(optimizer="adam").decay == 0.0
    assert Recipe(optimizer="sgd").learning_rate == 0.05
    assert Recipe(optimizer="sgd", lr=0.1, weight_decay=0.2).learning_rate == 0.1
    assert Recipe(optimizer="adamw", weight_decay=0.0).decay == 0.0


def test_files_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('\ufeffnorm = "batch"\n', encoding="utf-8")
    assert Recipe.load(path) == Recipe(norm="batch")
    path.write_text("norm = ", encoding="utf-8")
    with pytest.raises(InvalidValue, match="not valid TOML"):
        Recipe.load(path)
    with pytest.raises(HomeostatError, match="cannot read"):
        Recipe.load(tmp_path / "absent.toml")
