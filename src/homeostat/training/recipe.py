"""The recipe: every part and setting with which a network is trained, in one frozen object, TOML in and out.

A recipe says what is done, never to which data: the same recipe trains a built-in model or a user's own module. `keep`
(and `None` for dropout) means: leave that aspect of the model as its builder made it. Nothing here is random.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from homeostat.errors import HomeostatError, InvalidValue, invalid, unknown
from homeostat.parts.augment import AUGMENTATIONS
from homeostat.parts.corrupt import CORRUPTIONS

Init = Literal[
    "keep",
    "he_normal",
    "he_uniform",
    "xavier_normal",
    "xavier_uniform",
    "lecun_normal",
    "lecun_uniform",
    "fan_in_uniform",
    "orthogonal",
    "normal",
    "trunc_normal",
    "constant",
    "zeros",
    "he",
    "xavier",
    "lsuv",
]
Activation = Literal["keep", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "identity"]
Norm = Literal["keep", "none", "batch", "layer", "group", "instance", "rms"]


class Recipe(BaseModel):
    """A full set of parts and settings with which a network is trained.

    Lengths are in epochs, rates per step, probabilities are those of dropping. Weight decay is decoupled for every
    optimizer (w <- (1 - lr * weight_decay) * w; Loshchilov & Hutter 2019, arXiv:1711.05101); `l1` and `l2` are
    penalties added to the gradient; all three spare biases and normalization parameters.

    Example:
        >>> Recipe(norm="batch", dropout=0.2).varied({"dropout": 0.5}).dropout
        0.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    model: Literal["mlp", "cnn", "resnet", "plain", "alexnet", "inception"] | None = Field(
        None, description="built-in model; none: the task's own"
    )
    widths: tuple[int, ...] | None = Field(None, description="units per hidden layer (mlp) or channels per stage")
    depth: int | None = Field(None, description="weight layers of resnet and plain: 8, 14, 20, ... (6n + 2)")
    init: Init = Field("keep", description="initialization of linear and convolution weights; keep: PyTorch's")
    init_gain: float | None = Field(None, gt=0, description="times 1/√fan: the deviation; none: the scheme's own gain")
    residual: Literal["keep", "scaled", "zero", "fixup"] | None = Field(
        None, description="how init treats residual branches; none: as the scheme does"
    )
    activation: Activation = Field("keep", description="nonlinearity; keep: relu in built-in models")
    norm: Norm = Field(
        "keep", description="normalization after hidden layers; keep: none (mlp, cnn, alexnet), else batch"
    )
    dropout: float | None = Field(None, ge=0, le=1, description="probability of dropping a unit; none: as built")
    dropout_where: Literal["hidden", "input", "all"] = Field("hidden", description="what dropout acts on")
    dropout_kind: Literal["keep", "element", "channel", "alpha", "gaussian", "connect"] = Field(
        "keep", description="what is dropped; connect: weights; keep: single values where the builder chose no kind"
    )
    dropout_schedule: Literal["constant", "ramp", "early", "curriculum"] = Field(
        "constant", description="course of the probability over the epochs"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="probability of skipping a residual branch, at the last one")
    weight_decay: float | None = Field(None, ge=0, description="decoupled decay; none: 0.01 for adamw, else 0")
    l1: float = Field(0.0, ge=0, description="weight of the sum of absolute weights in the loss")
    l2: float = Field(0.0, ge=0, description="weight of half the sum of squared weights in the loss")
    l1_proximal: float = Field(0.0, ge=0, description="L1 by soft thresholds after each step: exact zeros")
    clip_norm: float | None = Field(None, gt=0, description="bound on the joint L2 norm of the gradient")
    clip_value: float | None = Field(None, gt=0, description="bound on each component of the gradient")
    clip_adaptive: float | None = Field(
        None, gt=0, description="bound on each unit's gradient norm, in units of its weight norm"
    )
    augment: str = Field("none", description=f"{', '.join(AUGMENTATIONS)}, joined by +, or none")
    mix: Literal["none", "mixup", "cutmix"] = Field("none", description="examples mixed with others of their batch")
    mix_alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution that mix draws from")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="the update rule")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; beta1 of adam and adamw")
    lr: float | None = Field(None, gt=0, description="peak learning rate; none: 0.001 for adam(w), 0.05 for sgd")
    schedule: Literal["constant", "cosine", "step", "exponential"] = Field(
        "constant", description="course of the learning rate"
    )
    gamma: float = Field(0.95, gt=0, le=1, description="what schedule=exponential multiplies by after every epoch")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from 0 to lr, in epochs")
    batch_size: int | Literal["full"] = Field(64, description="examples per step; full: the whole training split")
    epochs: int = Field(20, ge=1, description="passes over the training split")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without improvement")
    min_delta: float = Field(0.0, ge=0, description="the least change that counts as an improvement")
    gl_alpha: float | None = Field(None, gt=0, description="stop when the generalization loss exceeds this, in percent")
    pq_alpha: float | None = Field(None, gt=0, description="stop when generalization loss over progress exceeds this")
    up_strips: int | None = Field(None, ge=1, description="stop after this many strips in a row that each got worse")
    strip: int = Field(5, ge=1, description="epochs per strip, for pq_alpha and up_strips")
    monitor: Literal["valid_loss", "valid_metric"] = Field("valid_loss", description="what early stopping watches")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the forward pass")
    bn_statistics: Literal["momentum", "minibatch", "pooled"] = Field(
        "momentum", description="statistics of batch normalization for prediction: running, or measured after training"
    )
    mc_samples: int = Field(0, ge=0, description="dropout masks that final predictions average over; 0: none")
    corruption: str = Field("none", description="of validation and test images: name:severity, like fog:3")
    adapt: Literal["none", "bn", "tent"] = Field("none", description="adaptation to the images that are predicted")
    compile: bool = Field(False, description="run the model through torch.compile")

    def __init__(self, **settings: Any) -> None:
        for key in settings:
            if key not in type(self).model_fields:
                raise unknown("Recipe", "key", key, type(self).model_fields)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _in_our_voice(error) from None

    @field_validator(
        "model",
        "widths",
        "depth",
        "dropout",
        "weight_decay",
        "clip_norm",
        "clip_value",
        "clip_adaptive",
        "lr",
        "patience",
        "init_gain",
        "residual",
        "gl_alpha",
        "pq_alpha",
        "up_strips",
        mode="before",
    )
    @classmethod
    def _none_as_text(cls, value: object) -> object:
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator("widths", mode="before")
    @classmethod
    def _widths_from_text(cls, value: object) -> object:
        """`128x64` on the command line and in a factor's levels, where a level is one word."""
        if isinstance(value, str):
            return tuple(int(width) if width.isdecimal() else width for width in value.split("x"))
        return (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value

    @field_validator("widths")
    @classmethod
    def _positive_widths(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 1):
            raise ValueError("hold positive whole numbers, like 128x64")
        return value

    @field_validator("depth")
    @classmethod
    def _residual_depth(cls, value: int | None) -> int | None:
        if value is not None and (value < 8 or value % 6 != 2):
            raise ValueError("be 6n + 2 with n >= 1 (8, 14, 20, 26, 32, ...)")
        return value

    @field_validator("batch_size")
    @classmethod
    def _positive_batch(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError('be at least 1, or "full"')
        return value

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, value: str) -> str:
        names = value.split("+")
        for name in names:
            if name not in AUGMENTATIONS and value != "none":
                raise unknown("Recipe", "augmentation", name, (*AUGMENTATIONS, "none"))
        if len(set(names)) < len(names):
            raise ValueError("name each augmentation once")
        return value

    @field_validator("corruption")
    @classmethod
    def _known_corruption(cls, value: str) -> str:
        name, _, severity = value.partition(":")
        if value != "none" and name not in CORRUPTIONS:
            raise unknown("Recipe", "corruption", name, (*CORRUPTIONS, "none"))
        if value != "none" and severity not in ("1", "2", "3", "4", "5"):
            raise ValueError("be none, or a name and a severity from 1 to 5, like fog:3")
        return value

    @field_validator("mc_samples")
    @classmethod
    def _several_samples(cls, value: int) -> int:
        if value == 1:
            raise ValueError("be 0, or at least 2")
        return value

    @field_validator("*")
    @classmethod
    def _finite(cls, value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("be a finite number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.warmup_epochs > self.epochs:
            raise invalid(
                "Recipe",
                "warmup_epochs",
                f"be at most epochs ({self.epochs})",
                self.warmup_epochs,
                "Lengthen training.",
            )
        for name in ("init_gain", "residual"):
            if getattr(self, name) is not None and self.init == "keep":
                cure = "It belongs to an initialization: set init, such as init=he."
                raise invalid("Recipe", name, "be left out where init is keep", getattr(self, name), cure)
        if self.mc_samples and self.adapt != "none":
            cure = "Averaging over masks and adapting are two ways to predict: choose one."
            raise invalid("Recipe", "mc_samples", "be 0 where adapt is not none", self.mc_samples, cure)
        if self.learning_rate * self.decay > 1:
            cure = "A step shrinks the weights by that share. Lower one of them; weight_decay=0 switches decay off."
            shown = f"{self.learning_rate:g} * {self.decay:g}"
            raise invalid("Recipe", "lr * weight_decay", "be at most 1", shown, cure)
        return self

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: `lr`, or the optimizer's usual one."""
        return self.lr if self.lr is not None else (0.05 if self.optimizer == "sgd" else 0.001)

    @property
    def decay(self) -> float:
        """The decoupled weight decay: `weight_decay`, or the optimizer's usual one (torch's defaults)."""
        return self.weight_decay if self.weight_decay is not None else (0.01 if self.optimizer == "adamw" else 0.0)

    @property
    def stops_early(self) -> bool:
        """Whether training can end before its epochs are over, and the best weights are kept."""
        return any(bound is not None for bound in (self.patience, self.gl_alpha, self.pq_alpha, self.up_strips))

    def varied(self, changes: Mapping[str, Any]) -> Recipe:
        """The same recipe with some settings changed: one treatment of a study."""
        return Recipe(**{**self.model_dump(), **changes})

    def to_toml(self, also: Iterable[str] = ()) -> str:
        """The settings that differ from the defaults, and those named in `also`, as TOML; see `from_toml`."""
        shown = {*self.model_dump(exclude_defaults=True), *also}
        settings = {key: value for key, value in self.model_dump(mode="json").items() if key in shown}
        return tomli_w.dumps({key: "none" if value is None else value for key, value in settings.items()})

    @classmethod
    def from_toml(cls, text: str, *, where: str = "recipe") -> Recipe:
        """Read a recipe from TOML text; `where` names the source in errors."""
        try:
            return cls(**tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InvalidValue(f"{where}: not valid TOML: {error}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file."""
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8-sig"), where=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise HomeostatError(f"Recipe: cannot read {str(path)!r}: {error}. Give the path of a TOML file.") from None


def _in_our_voice(error: ValidationError) -> HomeostatError:
    """The first problem pydantic found, as `Recipe: key must ..., but got ...`; unknown words offer the nearest."""
    detail = error.errors()[0]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, HomeostatError):
        return cause
    key = str(detail["loc"][0]) if detail["loc"] else "settings"
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error" and isinstance(detail["input"], str) and key != "batch_size":
        return unknown("Recipe", f"{key}", detail["input"], [word.strip("' ") for word in _words(context["expected"])])
    condition = str(cause) if cause is not None else _condition(detail["msg"])
    if key == "batch_size" and cause is None:
        condition = 'be a whole number or "full"'
    meaning = Recipe.model_fields[key].description if key in Recipe.model_fields else None
    return invalid("Recipe", key, condition, detail["input"], f"Meaning: {meaning}." if meaning else "")


def _words(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _condition(message: str) -> str:
    """Pydantic's `Input should be X` as the `must be X` of our sentence."""
    return message.removeprefix("Input should ").removeprefix("Value error, ")
